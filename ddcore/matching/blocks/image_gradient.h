// The first convolution, back to its images: weight^T q_u + weight_dot^T p_u for the one to three channels of an image.

#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "maps.h"
#include "threads.h"

namespace {

// taps [B, V vectors]: what each of B pixels gives to the 9 pixels around it, for each of the few channels of an image.
template <class T, long V, long B> inline void give(const T* const maps[2], const T* const kernels[2], long pixel, long channels, T* taps) {
    constexpr long N = vector_bytes / sizeof(T);
    using Vector = typename Lanes<T, N>::Vector;
    Vector sums[B][V]{};
    for (int which = 0; which < 2; ++which) {
        const T *from = maps[which] + pixel * channels, *kernel = kernels[which];
        for (long i = 0; i < B * channels; i += 64 / sizeof(T)) __builtin_prefetch(from + B * channels + i); // the next pixels
        for (long c = 0; c < channels; ++c, kernel += V * N) {
            Vector k[V];
#pragma GCC unroll 16
            for (long v = 0; v < V; ++v) k[v] = load<Vector>(kernel + v * N);
#pragma GCC unroll 16
            for (long j = 0; j < B; ++j) {
                const T x = from[j * channels + c];
#pragma GCC unroll 16
                for (long v = 0; v < V; ++v) sums[j][v] += x * k[v];
            }
        }
    }
#pragma GCC unroll 16
    for (long j = 0; j < B; ++j)
#pragma GCC unroll 16
        for (long v = 0; v < V; ++v) store(taps + (j * V + v) * N, sums[j][v]);
}

template <class T, long V, long B>
inline void give_row(const T* const maps[2], const T* const kernels[2], long pixel, long end, long channels, T* taps) {
    for (; pixel + B <= end; pixel += B, taps += B * V * (vector_bytes / sizeof(T))) give<T, V, B>(maps, kernels, pixel, channels, taps);
    if constexpr (B > 1) give_row<T, V, B / 2>(maps, kernels, pixel, end, channels, taps);
}

constexpr long pixels_at_once(long vectors) {
    long pixels = 1;
    while (2 * pixels * vectors <= registers) pixels *= 2;
    return pixels;
}

// d_x [images, C, height, width] = weight^T q_u + weight_dot^T p_u; weights [channels, C, 3, 3]. A row's taps are computed for all of its
// pixels as one small product of matrices, then each row of images is gathered from the taps of the three rows around it.
template <class T, long C>
int image_gradient(const Shape& s, long threads, const T* q_u, const T* p_u, const T* weight, const T* weight_dot, T* d_x) {
    constexpr long N = vector_bytes / sizeof(T), V = (9 * C + N - 1) / N, lanes = V * N, B = pixels_at_once(V);
    T* packed = static_cast<T*>(std::calloc(2 * s.channels * lanes, sizeof(T)));
    if (!packed) return 1;
    const T* const kernels[2] = {packed, packed + s.channels * lanes};
    for (long c = 0; c < s.channels; ++c) {
        std::memcpy(packed + c * lanes, weight + c * 9 * C, 9 * C * sizeof(T));
        std::memcpy(packed + (s.channels + c) * lanes, weight_dot + c * 9 * C, 9 * C * sizeof(T));
    }
    std::atomic<int> failed{0};
    share(s.images, 2 * s.images * s.slab(), threads, [&](long image) {
        const long row = (s.width + 2) * lanes, plane = s.height * s.width;
        T* ring = static_cast<T*>(std::calloc(3 * row, sizeof(T))); // taps of three rows, a pixel of zeros at both ends
        if (!ring) {
            failed = 1;
            return;
        }
        const T* const maps[2] = {q_u + image * s.slab(), p_u + image * s.slab()};
        for (long y = 0; y <= s.height; ++y) {
            T* const below = ring + y % 3 * row;
            if (y < s.height) give_row<T, V, B>(maps, kernels, y * s.width, (y + 1) * s.width, s.channels, below + lanes);
            else std::memset(below, 0, row * sizeof(T));
            if (y == 0) continue;
            const T *const here = ring + (y - 1) % 3 * row, *const above = ring + (y + 1) % 3 * row;
            for (long c = 0; c < C; ++c) {
                T* out = d_x + (image * C + c) * plane + (y - 1) * s.width;
                for (long x = 0; x < s.width; ++x) { // tap 3 ky + kx of the pixel at (1 - ky, 1 - kx) from here
                    const long left = x * lanes + 9 * c, middle = left + lanes, right = middle + lanes;
                    out[x] = (below[right] + below[middle + 1] + below[left + 2]) + (here[right + 3] + here[middle + 4] + here[left + 5]) +
                             (above[right + 6] + above[middle + 7] + above[left + 8]);
                }
            }
        }
        std::free(ring);
    });
    std::free(packed);
    return failed;
}

} // namespace
