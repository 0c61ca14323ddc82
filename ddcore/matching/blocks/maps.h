// Maps that lie channels last, and vectors of their channels.

#pragma once

#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr long vector_bytes = 64, registers = 24; // of 32, for sums
#elif defined(__AVX__)
constexpr long vector_bytes = 32, registers = 12; // of 16
#else
constexpr long vector_bytes = 16, registers = 12;
#endif

struct Shape {
    long images, height, width, channels;
    long slab() const { return height * width * channels; }
    long pooled() const { return (height / 2) * (width / 2) * channels; }
};

template <class T, long N> struct Lanes {
    typedef T Vector __attribute__((vector_size(N * sizeof(T))));
};

template <class V, class T> inline V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class T, class V> inline void store(T* to, V v) { std::memcpy(to, &v, sizeof v); }

template <class T, class V> inline void add(T* to, V v) { store(to, load<V>(to) + v); }

template <class M, class V> inline V where(M alive, V v) { return alive ? v : V{}; }

} // namespace
