// Work shared among the threads of the OpenMP runtime that PyTorch has loaded.

#pragma once

#include <atomic>

namespace {

constexpr long worth_a_thread = 1 << 14; // elements; below, waking a thread costs more than it does

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel gomp_parallel = nullptr; // of the OpenMP runtime that PyTorch has loaded: a second one would fight it for the cores

template <class Work> struct Team {
    const Work* work;
    long items;
    std::atomic<long> next;
    static void run(void* self) {
        Team& team = *static_cast<Team*>(self);
        for (long item; (item = team.next.fetch_add(1, std::memory_order_relaxed)) < team.items;) (*team.work)(item);
    }
};

// work(item) for every item, which go through `elements` in all.
template <class Work> void share(long items, long elements, long threads, const Work& work) {
    const long enough = elements / worth_a_thread;
    threads = threads < enough ? threads : enough;
    threads = threads < items ? threads : items;
    Team<Work> team{&work, items, {0}};
    if (threads > 1 && gomp_parallel) gomp_parallel(&Team<Work>::run, &team, static_cast<unsigned>(threads), 0);
    else Team<Work>::run(&team);
}

} // namespace
