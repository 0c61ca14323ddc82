// 3x3 convolutions with padding 1 of small maps, channels last, where calling a library costs more than the convolution does. One thread.
//
// A few images at a time are copied into a frame of zeros, so that every pixel has its nine neighbours; those of a row lie next to each
// other, [3 pixels, channels]. Sums are kept in registers: for several pixels and a vector or two of channels, or for the gradient of
// the weight for its nine taps.

#pragma once

#include <cstdlib>
#include <cstring>

#include "maps.h"

namespace {

constexpr long pixels_worth_a_group = 64;
constexpr long vectors_at_once = registers >= 24 ? 2 : 1;

// Memory that goes back by itself.
template <class T> struct Room {
    T* const start;
    explicit Room(long size) : start(static_cast<T*>(std::calloc(size, sizeof(T)))) {}
    ~Room() { std::free(start); }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
};

// Images of `shape` in groups, each image in its frame of zeros.
template <class T> struct Framed {
    const Shape shape;
    const long line = (shape.width + 2) * shape.channels, plane = (shape.height + 2) * line;
    const long group = 1 + (pixels_worth_a_group - 1) / (shape.height * shape.width);
    const Room<T> room{(group < shape.images ? group : shape.images) * plane};

    long count(long image) const { return group < shape.images - image ? group : shape.images - image; }

    void fill(const T* from, long image) const {
        const long row = shape.width * shape.channels;
        from += image * shape.slab();
        for (long k = 0; k < count(image); ++k) {
            T* to = room.start + k * plane + line + shape.channels;
            for (long y = 0; y < shape.height; ++y, from += row, to += line) std::memcpy(to, from, row * sizeof(T));
        }
    }
};

// The upper left neighbours of the group's pixels, one after the other.
template <class T> struct Corner {
    const Framed<T>& framed;
    const T* at = framed.room.start;
    long x = 0, y = 0;

    const T* next() {
        const T* here = at;
        at += framed.shape.channels;
        if (++x == framed.shape.width) {
            x = 0;
            at += 2 * framed.shape.channels;
            if (++y == framed.shape.height) {
                y = 0;
                at += 2 * framed.line;
            }
        }
        return here;
    }
};

// ---- forward, and back to the input --------------------------------------------------------------------------------------------

// B pixels' `kept` channels, of V vectors. kernel [9 c, lanes].
template <class T, long N, long V, long B>
inline void correlate(const T* const (&corners)[B], const Framed<T>& framed, const T* kernel, long lanes, T* to, long channels, long kept) {
    using Vector = typename Lanes<T, N>::Vector;
    Vector sums[B][V]{};
    const long reach = 3 * framed.shape.channels;
    for (long ky = 0, at = 0; ky < 3; ++ky, at += framed.line - reach)
        for (const long end = at + reach; at < end; ++at, kernel += lanes) {
            Vector k[V];
#pragma GCC unroll 2
            for (long v = 0; v < V; ++v) k[v] = load<Vector>(kernel + v * N);
#pragma GCC unroll 16
            for (long j = 0; j < B; ++j)
#pragma GCC unroll 2
                for (long v = 0; v < V; ++v) sums[j][v] += corners[j][at] * k[v];
        }
#pragma GCC unroll 16
    for (long j = 0; j < B; ++j, to += channels) {
        if (kept == V * N) {
#pragma GCC unroll 2
            for (long v = 0; v < V; ++v) store(to + v * N, sums[j][v]);
        } else {
            std::memcpy(to, sums[j], kept * sizeof(T));
        }
    }
}

template <class T, long N, long B>
inline void last_channels(
    const T* const (&corners)[B], const Framed<T>& framed, const T* kernel, long lanes, T* to, long channels, long left) {
    if constexpr (N > 1) {
        if (left <= N / 2) return last_channels<T, N / 2, B>(corners, framed, kernel, lanes, to, channels, left);
    }
    correlate<T, N, 1, B>(corners, framed, kernel, lanes, to, channels, left);
}

// Pixels [pixel, end) of a group.
template <class T, long B>
void correlate_all(Corner<T>& corner, long pixel, long end, const T* kernel, long lanes, T* to, long channels) {
    constexpr long N = vector_bytes / sizeof(T), V = vectors_at_once;
    for (; pixel + B <= end; pixel += B, to += B * channels) {
        const T* corners[B];
        for (long j = 0; j < B; ++j) corners[j] = corner.next();
        long c = 0;
        for (; c + V * N <= channels; c += V * N)
            correlate<T, N, V, B>(corners, corner.framed, kernel + c, lanes, to + c, channels, V * N);
        for (; c < channels; c += N) {
            const long left = channels - c < N ? channels - c : N;
            last_channels<T, N, B>(corners, corner.framed, kernel + c, lanes, to + c, channels, left);
        }
    }
    if constexpr (B > 1) correlate_all<T, B / 2>(corner, pixel, end, kernel, lanes, to, channels);
}

template <class T> constexpr long whole_vectors(long channels) {
    constexpr long N = vector_bytes / sizeof(T);
    return (channels + N - 1) / N * N;
}

// to [images, height, width, channels] from maps of `shape` and kernel [9 c, whole vectors of channels].
template <class T> int correlate_maps(const Shape& shape, const T* maps, const T* kernel, T* to, long channels) {
    const Framed<T> framed{shape};
    if (!framed.room.start) return 1;
    const long plane = shape.height * shape.width;
    for (long image = 0; image < shape.images; image += framed.group) {
        framed.fill(maps, image);
        Corner<T> corner{framed};
        T* const out = to + image * plane * channels;
        correlate_all<T, 8>(corner, 0, framed.count(image) * plane, kernel, whole_vectors<T>(channels), out, channels);
    }
    return 0;
}

// u [images, height, width, others] of h in `s` and weight [others, 3, 3, channels].
template <class T> int convolve(const Shape& s, long others, const T* h, const T* weight, T* u) {
    const long lanes = whole_vectors<T>(others), reach = 9 * s.channels;
    const Room<T> kernel(reach * lanes);
    if (!kernel.start) return 1;
    for (long o = 0; o < others; ++o)
        for (long i = 0; i < reach; ++i) kernel.start[i * lanes + o] = weight[o * reach + i];
    return correlate_maps<T>(s, h, kernel.start, u, others);
}

// ---- back to the weight --------------------------------------------------------------------------------------------------------

// sums [9 taps, stride `tap`] += those of one input channel (`corner` is its first) with V vectors of p_u's.
template <class T, long N, long V>
inline void weigh(const Framed<T>& framed, long images, const T* corner, const T* p_u, long others, T* sums, long tap) {
    using Vector = typename Lanes<T, N>::Vector;
    Vector sum[9][V]{};
    const long c = framed.shape.channels;
    for (long image = 0; image < images; ++image, corner += framed.plane)
        for (long y = 0; y < framed.shape.height; ++y) {
            const T *top = corner + y * framed.line, *middle = top + framed.line, *bottom = middle + framed.line;
            for (long x = 0; x < framed.shape.width; ++x, p_u += others, top += c, middle += c, bottom += c) {
                const T* const rows[3] = {top, middle, bottom};
#pragma GCC unroll 2
                for (long v = 0; v < V; ++v) {
                    const Vector p = load<Vector>(p_u + v * N);
#pragma GCC unroll 9
                    for (int k = 0; k < 9; ++k) sum[k][v] += rows[k / 3][k % 3 * c] * p;
                }
            }
        }
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k)
#pragma GCC unroll 2
        for (long v = 0; v < V; ++v) add(sums + k * tap + v * N, sum[k][v]);
}

template <class T, long N>
inline void weigh_last(const Framed<T>& framed, long images, const T* corner, const T* p_u, long others, T* sums, long tap, long left) {
    if constexpr (N > 0) {
        for (; left >= N; left -= N, p_u += N, sums += N) weigh<T, N, 1>(framed, images, corner, p_u, others, sums, tap);
        weigh_last<T, N / 2>(framed, images, corner, p_u, others, sums, tap, left);
    }
}

// d_weight [others, 3, 3, channels] from p_u [images, height, width, others] and h in `s`.
template <class T> int weight_gradient(const Shape& s, long others, const T* p_u, const T* h, T* d_weight) {
    constexpr long N = vector_bytes / sizeof(T), V = vectors_at_once;
    const long reach = 9 * s.channels, tap = s.channels * others, plane = s.height * s.width;
    const Framed<T> framed{s};
    const Room<T> sums(reach * others); // [9, channels, others]
    if (!framed.room.start || !sums.start) return 1;
    for (long image = 0; image < s.images; image += framed.group) {
        framed.fill(h, image);
        const long images = framed.count(image);
        for (long i = 0; i < s.channels; ++i) {
            const T *corner = framed.room.start + i, *p = p_u + image * plane * others;
            T* to = sums.start + i * others;
            long left = others;
            for (; left >= V * N; left -= V * N, p += V * N, to += V * N) weigh<T, N, V>(framed, images, corner, p, others, to, tap);
            weigh_last<T, N>(framed, images, corner, p, others, to, tap, left);
        }
    }
    for (long o = 0; o < others; ++o)
        for (long i = 0; i < reach; ++i) d_weight[o * reach + i] = sums.start[i * others + o];
    return 0;
}

// d_h like h, unless null, and d_weight like weight, unless null, of p_u [images, height, width, others].
template <class T> int convolve_back(const Shape& s, long others, const T* p_u, const T* h, const T* weight, T* d_h, T* d_weight) {
    if (d_weight && weight_gradient<T>(s, others, p_u, h, d_weight)) return 1;
    if (!d_h) return 0;
    const long lanes = whole_vectors<T>(s.channels);
    const Room<T> kernel(9 * others * lanes);
    if (!kernel.start) return 1;
    for (long o = 0; o < others; ++o)
        for (long k = 0; k < 9; ++k, weight += s.channels)
            std::memcpy(kernel.start + ((8 - k) * others + o) * lanes, weight, s.channels * sizeof(T));
    return correlate_maps<T>({s.images, s.height, s.width, others}, p_u, kernel.start, d_h, s.channels);
}

} // namespace
