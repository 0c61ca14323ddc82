// The block of interface.py and its three derivatives for a CPU, on maps that lie channels last: [images, height, width, channels].
//
// Memory traffic is what these cost. Threads take an image and a group of its channels each, so that what is read once from memory is
// in the cache for the passes after the first, and nothing of a map's size is written but the result: n and [z > 0] are computed again
// from u where they are needed. Sums over pixels are kept for each channel, a pair of rows at a time; sums over images are added in
// their order at the end, so results are the same bits for any number of threads.

#include <cmath>
#include <cstdlib>

#include "convolution.h"
#include "image_gradient.h"
#include "maps.h"
#include "threads.h"

namespace {

constexpr long group_bytes = 256; // of a pixel's channels: two maps of 32x32 pixels then fit a second-level cache

template <class T> constexpr long group_of = group_bytes / sizeof(T);

// work(image, first channel, last channel) for every image and group of channels.
template <class T, class Work> void share_groups(const Shape& s, long threads, const Work& work) {
    const long groups = (s.channels + group_of<T> - 1) / group_of<T>;
    share(s.images * groups, s.images * s.slab(), threads, [&](long item) {
        const long from = item % groups * group_of<T>, to = from + group_of<T>;
        work(item / groups, from, to < s.channels ? to : s.channels);
    });
}

// ---- walks over one image ------------------------------------------------------------------------------------------------------

template <class T, long N, class Body> inline void narrower(long strip, long c, long to, const Body& body) {
    if constexpr (N > 0) {
        if (c + N <= to) {
            body(Lanes<T, N>{}, strip, c);
            c += N;
        }
        narrower<T, N / 2>(strip, c, to, body);
    }
}

// body(lanes, strip, channel) for every strip (two rows, or the odd last one) and vector of the channels [from, to).
template <class T, class Body> inline void sweep(const Shape& s, long from, long to, const Body& body) {
    constexpr long N = vector_bytes / sizeof(T);
    for (long strip = 0; 2 * strip < s.height; ++strip) {
        long c = from;
        for (; c + N <= to; c += N) body(Lanes<T, N>{}, strip, c);
        narrower<T, N / 2>(strip, c, to, body);
    }
}

// window(offsets of its four pixels, offset in the pooled map) along a strip, and single(offset) for the pixels that pooling drops.
template <class Window, class Single>
inline void walk(const Shape& s, long strip, const Window& window, const Single& single) {
    const long c = s.channels, row = s.width * c, top = 2 * strip * row, columns = s.width / 2;
    if (2 * strip + 1 == s.height) {
        for (long x = 0; x < s.width; ++x) single(top + x * c);
        return;
    }
    for (long x = 0, at = top, pooled = strip * columns * c; x < columns; ++x, at += 2 * c, pooled += c) {
        const long four[4] = {at, at + c, at + row, at + row + c};
        window(four, pooled);
    }
    if (s.width % 2) {
        single(top + row - c);
        single(top + 2 * row - c);
    }
}

// ---- the block -----------------------------------------------------------------------------------------------------------------

template <class T> void forward(const Shape& s, long threads, double eps, const T* u, const T* scale, const T* shift, T* h, T* stats) {
    const T share_of_one = T(1) / T(s.height * s.width);
    share_groups<T>(s, threads, [&](long image, long from, long to) {
        const T* map = u + image * s.slab();
        T *out = h + image * s.pooled(), *mean = stats + image * s.channels, *r = mean + s.images * s.channels;
        for (long c = from; c < to; ++c) mean[c] = r[c] = 0;
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            V sum{};
            const auto single = [&](long at) { sum += load<V>(map + c + at); };
            const auto window = [&](const long(&at)[4], long) {
                sum += (load<V>(map + c + at[0]) + load<V>(map + c + at[1])) + (load<V>(map + c + at[2]) + load<V>(map + c + at[3]));
            };
            walk(s, strip, window, single);
            add(mean + c, sum);
        });
        for (long c = from; c < to; ++c) mean[c] *= share_of_one;
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c);
            V even{}, odd{};
            const auto single = [&](long at) {
                const V d = load<V>(map + c + at) - middle;
                even += d * d;
            };
            const auto window = [&](const long(&at)[4], long) {
                V d[4];
                for (int k = 0; k < 4; ++k) d[k] = load<V>(map + c + at[k]) - middle;
                even += d[0] * d[0] + d[1] * d[1];
                odd += d[2] * d[2] + d[3] * d[3];
            };
            walk(s, strip, window, single);
            add(r + c, even + odd);
        });
        for (long c = from; c < to; ++c) r[c] = T(1) / std::sqrt(r[c] * share_of_one + T(eps));
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            const auto window = [&](const long(&at)[4], long pooled) {
                V z[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const V n = (load<V>(map + c + at[k]) - middle) * by;
                    z[k] = n * g + b;
                    z[k] = where(z[k] > 0, z[k]);
                }
                store(out + c + pooled, ((z[0] + z[1]) + (z[2] + z[3])) * T(0.25));
            };
            walk(s, strip, window, [](long) {});
        });
    });
}

// d_scale and d_shift [channels] = partials [2, images, channels] added over the images.
template <class T> void reduce(const Shape& s, const T* partials, T* d_scale, T* d_shift) {
    T* const both[2] = {d_scale, d_shift};
    for (T* const sums : both) {
        for (long c = 0; c < s.channels; ++c) sums[c] = 0;
        for (long image = 0; image < s.images; ++image, partials += s.channels)
            for (long c = 0; c < s.channels; ++c) sums[c] += partials[c];
    }
}

template <class T>
int backward(
    const Shape& s, long threads, const T* u, const T* stats, const T* scale, const T* shift, const T* p_h, T* p_u, T* d_scale,
    T* d_shift) {
    T* partials = static_cast<T*>(std::malloc(sizeof(T) * 2 * s.images * s.channels));
    if (!partials) return 1;
    const T share_of_one = T(1) / T(s.height * s.width);
    share_groups<T>(s, threads, [&](long image, long from, long to) {
        const T *map = u + image * s.slab(), *given = p_h + image * s.pooled();
        const T *mean = stats + image * s.channels, *r = mean + s.images * s.channels;
        T *out = p_u + image * s.slab(), *sum_np = partials + image * s.channels, *sum_p = sum_np + s.images * s.channels;
        for (long c = from; c < to; ++c) sum_np[c] = sum_p[c] = 0;
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            V of_np{}, of_p{};
            const auto window = [&](const long(&at)[4], long pooled) {
                V count[4], n[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    n[k] = (load<V>(map + c + at[k]) - middle) * by;
                    const auto alive = n[k] * g + b > 0;
                    count[k] = where(alive, V{} + 1);
                    n[k] = where(alive, n[k]);
                }
                const V p = load<V>(given + c + pooled);
                of_np += p * ((n[0] + n[1]) + (n[2] + n[3]));
                of_p += p * ((count[0] + count[1]) + (count[2] + count[3]));
            };
            walk(s, strip, window, [](long) {});
            add(sum_np + c, of_np * T(0.25));
            add(sum_p + c, of_p * T(0.25));
        });
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            const V gain = by * g, less = gain * load<V>(sum_p + c) * share_of_one, less_n = gain * load<V>(sum_np + c) * share_of_one;
            const V quarter = gain * T(0.25);
            const auto single = [&](long at) {
                const V n = (load<V>(map + c + at) - middle) * by;
                store(out + c + at, -less - n * less_n);
            };
            const auto window = [&](const long(&at)[4], long pooled) {
                const V p = load<V>(given + c + pooled) * quarter;
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const V n = (load<V>(map + c + at[k]) - middle) * by;
                    store(out + c + at[k], where(n * g + b > 0, p) - less - n * less_n);
                }
            };
            walk(s, strip, window, single);
        });
    });
    reduce(s, partials, d_scale, d_shift);
    std::free(partials);
    return 0;
}

template <class T>
void tangent(
    const Shape& s, long threads, const T* u, const T* stats, const T* scale, const T* shift, const T* u_dot, const T* scale_dot,
    const T* shift_dot, T* h_dot, T* stats_dot) {
    const T share_of_one = T(1) / T(s.height * s.width);
    share_groups<T>(s, threads, [&](long image, long from, long to) {
        const T *map = u + image * s.slab(), *moved = u_dot + image * s.slab();
        const T *mean = stats + image * s.channels, *r = mean + s.images * s.channels;
        T *out = h_dot + image * s.pooled(), *mean_dot = stats_dot + image * s.channels, *mean_nu = mean_dot + s.images * s.channels;
        for (long c = from; c < to; ++c) mean_dot[c] = mean_nu[c] = 0;
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c);
            V sum{}, sum_n{};
            const auto single = [&](long at) {
                const V dot = load<V>(moved + c + at);
                sum += dot;
                sum_n += (load<V>(map + c + at) - middle) * dot;
            };
            const auto window = [&](const long(&at)[4], long) {
                V dot[4], product[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    dot[k] = load<V>(moved + c + at[k]);
                    product[k] = (load<V>(map + c + at[k]) - middle) * dot[k];
                }
                sum += (dot[0] + dot[1]) + (dot[2] + dot[3]);
                sum_n += (product[0] + product[1]) + (product[2] + product[3]);
            };
            walk(s, strip, window, single);
            add(mean_dot + c, sum);
            add(mean_nu + c, sum_n * by);
        });
        for (long c = from; c < to; ++c) {
            mean_dot[c] *= share_of_one;
            mean_nu[c] *= share_of_one;
        }
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            const V gain = by * g, of_n = load<V>(scale_dot + c) - gain * load<V>(mean_nu + c), b_dot = load<V>(shift_dot + c);
            const V middle_dot = load<V>(mean_dot + c);
            const auto window = [&](const long(&at)[4], long pooled) {
                V z_dot[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const V n = (load<V>(map + c + at[k]) - middle) * by;
                    const V moving = n * of_n + gain * (load<V>(moved + c + at[k]) - middle_dot) + b_dot;
                    z_dot[k] = where(n * g + b > 0, moving);
                }
                store(out + c + pooled, ((z_dot[0] + z_dot[1]) + (z_dot[2] + z_dot[3])) * T(0.25));
            };
            walk(s, strip, window, [](long) {});
        });
    });
}

// With a = mean(n u_dot) and u_dot less its mean, all means in Q_u are linear in five sums over [z > 0]:
// of P, n P, u_dot P, Q and n Q.
template <class T>
int second(
    const Shape& s, long threads, const T* u, const T* stats, const T* u_dot, const T* stats_dot, const T* scale, const T* shift,
    const T* scale_dot, const T* p_h, const T* q_h, T* q_u, T* d_scale, T* d_shift) {
    T* partials = static_cast<T*>(std::malloc(sizeof(T) * 2 * s.images * s.channels));
    if (!partials) return 1;
    const T share_of_one = T(1) / T(s.height * s.width);
    share_groups<T>(s, threads, [&](long image, long from, long to) {
        const T *map = u + image * s.slab(), *moved = u_dot + image * s.slab();
        const T *given_p = p_h + image * s.pooled(), *given_q = q_h + image * s.pooled();
        const T *mean = stats + image * s.channels, *r = mean + s.images * s.channels;
        const T *mean_dot = stats_dot + image * s.channels, *mean_nu = mean_dot + s.images * s.channels;
        T *out = q_u + image * s.slab(), *own_scale = partials + image * s.channels, *own_shift = own_scale + s.images * s.channels;
        T sum_p[group_of<T>], sum_np[group_of<T>], sum_up[group_of<T>], sum_q[group_of<T>], sum_nq[group_of<T>];
        for (long i = 0; i < to - from; ++i) sum_p[i] = sum_np[i] = sum_up[i] = sum_q[i] = sum_nq[i] = 0;
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            const V middle_dot = load<V>(mean_dot + c);
            V of_p{}, of_np{}, of_up{}, of_q{}, of_nq{};
            const auto window = [&](const long(&at)[4], long pooled) {
                V count[4], n[4], dot[4];
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    n[k] = (load<V>(map + c + at[k]) - middle) * by;
                    const auto alive = n[k] * g + b > 0;
                    count[k] = where(alive, V{} + 1);
                    n[k] = where(alive, n[k]);
                    dot[k] = where(alive, load<V>(moved + c + at[k]) - middle_dot);
                }
                const V p = load<V>(given_p + c + pooled), q = load<V>(given_q + c + pooled);
                const V number = (count[0] + count[1]) + (count[2] + count[3]), n_of = (n[0] + n[1]) + (n[2] + n[3]);
                of_p += p * number;
                of_np += p * n_of;
                of_up += p * ((dot[0] + dot[1]) + (dot[2] + dot[3]));
                of_q += q * number;
                of_nq += q * n_of;
            };
            walk(s, strip, window, [](long) {});
            const long i = c - from;
            add(sum_p + i, of_p * T(0.25));
            add(sum_np + i, of_np * T(0.25));
            add(sum_up + i, of_up * T(0.25));
            add(sum_q + i, of_q * T(0.25));
            add(sum_nq + i, of_nq * T(0.25));
        });
        T constant[group_of<T>], of_n[group_of<T>], of_dot[group_of<T>], of_p[group_of<T>];
        for (long c = from, i = 0; c < to; ++c, ++i) {
            const T g = scale[c], g_dot = scale_dot[c], by = r[c], a = mean_nu[c];
            const T moving = by * (sum_up[i] - a * sum_np[i]); // sum(P_z n_dot)
            own_scale[c] = sum_nq[i] + moving;
            own_shift[c] = sum_q[i];
            const T np = g * sum_np[i];
            constant[i] = -by * share_of_one * (g * sum_q[i] + g_dot * sum_p[i] - by * a * g * sum_p[i]);
            of_n[i] = -by * share_of_one * (g * sum_nq[i] + g_dot * sum_np[i] - 2 * by * a * np + g * moving);
            of_dot[i] = -by * by * share_of_one * np;
            of_p[i] = g_dot - by * a * g;
        }
        sweep<T>(s, from, to, [&](auto lanes, long strip, long c) {
            using V = typename decltype(lanes)::Vector;
            const V middle = load<V>(mean + c), by = load<V>(r + c), g = load<V>(scale + c), b = load<V>(shift + c);
            const V middle_dot = load<V>(mean_dot + c);
            const long i = c - from;
            const V add_always = load<V>(constant + i), by_n = load<V>(of_n + i), by_dot = load<V>(of_dot + i);
            const V quarter = by * T(0.25), by_p = quarter * load<V>(of_p + i), by_q = quarter * g;
            const auto single = [&](long at) {
                const V n = (load<V>(map + c + at) - middle) * by;
                store(out + c + at, add_always + n * by_n + (load<V>(moved + c + at) - middle_dot) * by_dot);
            };
            const auto window = [&](const long(&at)[4], long pooled) {
                const V both = load<V>(given_p + c + pooled) * by_p + load<V>(given_q + c + pooled) * by_q;
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const V n = (load<V>(map + c + at[k]) - middle) * by;
                    const V always = add_always + n * by_n + (load<V>(moved + c + at[k]) - middle_dot) * by_dot;
                    store(out + c + at[k], always + where(n * g + b > 0, both));
                }
            };
            walk(s, strip, window, single);
        });
    });
    reduce(s, partials, d_scale, d_shift);
    std::free(partials);
    return 0;
}

// ---- what Python calls ---------------------------------------------------------------------------------------------------------
// Everything a call needs lies in one struct, since ctypes takes longer over a dozen arguments than a small map takes in here.
// stats [2, images, channels] are mean u and r; stats_dot mean u_dot and mean(n u_dot). The answer is 0, or 1 if there was no memory.

struct Call {
    long threads, images, height, width, channels, others; // others: the channels on a convolution's far side
    double eps;
    void* pointers[12]; // as many as the function takes
    Shape shape() const { return {images, height, width, channels}; }
};

template <class T> struct Pointers {
    void* const* all;
    T* operator[](int place) const { return static_cast<T*>(all[place]); }
};

template <class T> int call_forward(const Call& call, Pointers<T> p) { // u, scale, shift, h, stats
    forward<T>(call.shape(), call.threads, call.eps, p[0], p[1], p[2], p[3], p[4]);
    return 0;
}

template <class T> int call_backward(const Call& call, Pointers<T> p) { // u, stats, scale, shift, p_h, p_u, d_scale, d_shift
    return backward<T>(call.shape(), call.threads, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
}

template <class T> int call_tangent(const Call& call, Pointers<T> p) {
    // u, stats, scale, shift, u_dot, scale_dot, shift_dot, h_dot, stats_dot
    tangent<T>(call.shape(), call.threads, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8]);
    return 0;
}

template <class T> int call_second(const Call& call, Pointers<T> p) {
    // u, stats, u_dot, stats_dot, scale, shift, scale_dot, p_h, q_h, q_u, d_scale, d_shift
    return second<T>(call.shape(), call.threads, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]);
}

template <class T> int call_image_gradient(const Call& call, Pointers<T> p) { // q_u, p_u, weight, weight_dot, d_x [images, others, ...]
    const auto with = call.others == 1 ? image_gradient<T, 1> : call.others == 2 ? image_gradient<T, 2> : image_gradient<T, 3>;
    return with(call.shape(), call.threads, p[0], p[1], p[2], p[3], p[4]);
}

template <class T> int call_convolve(const Call& call, Pointers<T> p) { // h, weight, u [images, ..., others]
    return convolve<T>(call.shape(), call.others, p[0], p[1], p[2]);
}

template <class T> int call_convolve_back(const Call& call, Pointers<T> p) { // p_u [images, ..., others], h, weight, d_h, d_weight
    return convolve_back<T>(call.shape(), call.others, p[0], p[1], p[2], p[3], p[4]);
}

} // namespace

extern "C" void potstill_runtime(void* parallel) { gomp_parallel = reinterpret_cast<Parallel>(parallel); }

#define POTSTILL(NAME)                                                                                                                 \
    extern "C" int potstill_##NAME##_float(const Call* call) { return call_##NAME<float>(*call, {call->pointers}); }                   \
    extern "C" int potstill_##NAME##_double(const Call* call) { return call_##NAME<double>(*call, {call->pointers}); }

POTSTILL(forward)
POTSTILL(backward)
POTSTILL(tangent)
POTSTILL(second)
POTSTILL(image_gradient)
POTSTILL(convolve)
POTSTILL(convolve_back)
