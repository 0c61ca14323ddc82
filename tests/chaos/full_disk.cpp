// Loaded before the C library: while the file $CHAOS_FULL exists, files below $CHAOS_FOLDER take no byte beyond their first thousand,
// as on a disk that is full. Needs no privilege. Leaves "$CHAOS_FULL.hit" where a write was refused.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_full(int descriptor, off_t &size) {
    const char *flag = std::getenv("CHAOS_FULL"), *folder = std::getenv("CHAOS_FOLDER");
    if (!flag || !folder || access(flag, F_OK) != 0) return false;
    char link[64], path[4096];
    std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    struct stat about;
    if (length <= 0 || fstat(descriptor, &about) != 0 || !S_ISREG(about.st_mode)) return false;
    path[length] = 0;
    size = about.st_size;
    return std::strncmp(path, folder, std::strlen(folder)) == 0;
}

extern "C" ssize_t write(int descriptor, const void *bytes, size_t count) {
    static auto real = reinterpret_cast<ssize_t (*)(int, const void *, size_t)>(dlsym(RTLD_NEXT, "write"));
    int before = errno;
    off_t size = 0;
    bool full = is_full(descriptor, size);
    errno = before;
    if (!full) return real(descriptor, bytes, count);
    if (size < 1000) return real(descriptor, bytes, count < 1000 ? count : 1000);
    char hit[4096];
    std::snprintf(hit, sizeof hit, "%s.hit", std::getenv("CHAOS_FULL"));
    close(open(hit, O_CREAT | O_WRONLY, 0644));
    errno = ENOSPC;
    return -1;
}
