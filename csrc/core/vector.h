// A short vector of floats or doubles as wide as the instruction set this file is compiled for; plain arrays elsewhere.
// Everything here is inlined into the kernels file that includes it, inside that file's own namespace.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define PYALIGN_INLINE static __forceinline
#else
#define PYALIGN_INLINE static inline __attribute__((always_inline))
#endif

// Before a loop of few, constant rounds: its arrays of vectors then live in registers.
#if defined(__clang__)
#define PYALIGN_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define PYALIGN_UNROLL _Pragma("GCC unroll 32")
#else
#define PYALIGN_UNROLL
#endif

#if defined(__GNUC__)
#define PYALIGN_PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define PYALIGN_PREFETCH(address) static_cast<void>(address)
#endif

#if (defined(__AVX512F__) || defined(__AVX2__)) && !(defined(_MSC_VER) && !defined(__clang__))
#include <immintrin.h>
#define PYALIGN_HAS_AVX 1
#endif

#if defined(__AVX512F__)
#define PYALIGN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define PYALIGN_VECTOR_BYTES 32
#else
#define PYALIGN_VECTOR_BYTES 16
#endif

namespace pyalign {
namespace PYALIGN_SIMD {

template <typename T>
struct Lanes {
    static constexpr int count = PYALIGN_VECTOR_BYTES / static_cast<int>(sizeof(T));
};

#if defined(__GNUC__)
typedef float VectorF __attribute__((vector_size(PYALIGN_VECTOR_BYTES)));
typedef double VectorD __attribute__((vector_size(PYALIGN_VECTOR_BYTES)));
#else
template <typename T>
struct ArrayVector {
    T lane[Lanes<T>::count];
    T operator[](int k) const { return lane[k]; }
};
typedef ArrayVector<float> VectorF;
typedef ArrayVector<double> VectorD;
#define PYALIGN_LANEWISE(op)                                                                \
    template <typename T>                                                                   \
    PYALIGN_INLINE ArrayVector<T> operator op(ArrayVector<T> a, ArrayVector<T> b) {         \
        for (int k = 0; k < Lanes<T>::count; ++k) a.lane[k] = a.lane[k] op b.lane[k];       \
        return a;                                                                           \
    }                                                                                       \
    template <typename T>                                                                   \
    PYALIGN_INLINE ArrayVector<T>& operator op## = (ArrayVector<T> & a, ArrayVector<T> b) { \
        return a = a op b;                                                                  \
    }
PYALIGN_LANEWISE(+)
PYALIGN_LANEWISE(-)
PYALIGN_LANEWISE(*)
#undef PYALIGN_LANEWISE
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef VectorF type;
};
template <>
struct VectorOf<double> {
    typedef VectorD type;
};

template <typename T>
PYALIGN_INLINE typename VectorOf<T>::type load(const T* from) {
    typename VectorOf<T>::type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

template <typename T>
PYALIGN_INLINE void store(T* to, typename VectorOf<T>::type value) {
    std::memcpy(to, &value, sizeof(value));
}

template <typename T>
PYALIGN_INLINE typename VectorOf<T>::type broadcast(T scalar) {
    T lanes[Lanes<T>::count];
    for (int k = 0; k < Lanes<T>::count; ++k) lanes[k] = scalar;
    return load(lanes);
}

template <typename T>
PYALIGN_INLINE T sum_of(typename VectorOf<T>::type value) {
    T total = 0;
    for (int k = 0; k < Lanes<T>::count; ++k) total += value[k];
    return total;
}

// The four horizontal sums of four vectors.
PYALIGN_INLINE void sums_of(VectorF v0, VectorF v1, VectorF v2, VectorF v3, float* sums) {
#if defined(__AVX512F__)
    const auto pairs = [](__m512 a, __m512 b) __attribute__((always_inline)) {
        return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const __m512 p = pairs((__m512)v0, (__m512)v1), q = pairs((__m512)v2, (__m512)v3);
    const __m512 lanes = _mm512_add_ps(_mm512_shuffle_ps(p, q, 0x44), _mm512_shuffle_ps(p, q, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(PYALIGN_HAS_AVX)
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v0, (__m256)v1), _mm256_hadd_ps((__m256)v2, (__m256)v3));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
    sums[0] = sum_of<float>(v0);
    sums[1] = sum_of<float>(v1);
    sums[2] = sum_of<float>(v2);
    sums[3] = sum_of<float>(v3);
#endif
}

PYALIGN_INLINE void sums_of(VectorD v0, VectorD v1, VectorD v2, VectorD v3, double* sums) {
    sums[0] = sum_of<double>(v0);
    sums[1] = sum_of<double>(v1);
    sums[2] = sum_of<double>(v2);
    sums[3] = sum_of<double>(v3);
}

// The lanes that follow `from`, converted to double; comparisons and choices between them.
#if defined(__GNUC__)
typedef int64_t VectorI __attribute__((vector_size(PYALIGN_VECTOR_BYTES)));

template <typename T>
PYALIGN_INLINE VectorD load_as_double(const T* from) {
    typedef T Narrow __attribute__((vector_size(sizeof(T) * Lanes<double>::count)));
    Narrow value;
    std::memcpy(&value, from, sizeof(value));
    return __builtin_convertvector(value, VectorD);
}

PYALIGN_INLINE VectorI less(VectorD a, VectorD b) {
    return (VectorI)(a < b);
}
PYALIGN_INLINE VectorI equal(VectorD a, VectorD b) {
    return (VectorI)(a == b);
}
PYALIGN_INLINE VectorD choose(VectorI where, VectorD a, VectorD b) {
    return where ? a : b;
}
PYALIGN_INLINE VectorI choose(VectorI where, VectorI a, VectorI b) {
    return where ? a : b;
}
PYALIGN_INLINE VectorI next(VectorI index, VectorI step) {
    return index + step;
}
#else
struct VectorI {
    int64_t lane[Lanes<double>::count];
    int64_t operator[](int k) const { return lane[k]; }
};

template <typename T>
PYALIGN_INLINE VectorD load_as_double(const T* from) {
    VectorD value;
    for (int k = 0; k < Lanes<double>::count; ++k) value.lane[k] = static_cast<double>(from[k]);
    return value;
}

PYALIGN_INLINE VectorI less(VectorD a, VectorD b) {
    VectorI where;
    for (int k = 0; k < Lanes<double>::count; ++k) where.lane[k] = a.lane[k] < b.lane[k] ? -1 : 0;
    return where;
}
PYALIGN_INLINE VectorI equal(VectorD a, VectorD b) {
    VectorI where;
    for (int k = 0; k < Lanes<double>::count; ++k) where.lane[k] = a.lane[k] == b.lane[k] ? -1 : 0;
    return where;
}
template <typename V>
PYALIGN_INLINE V choose(VectorI where, V a, V b) {
    for (int k = 0; k < Lanes<double>::count; ++k) a.lane[k] = where.lane[k] ? a.lane[k] : b.lane[k];
    return a;
}
PYALIGN_INLINE VectorI next(VectorI index, VectorI step) {
    for (int k = 0; k < Lanes<double>::count; ++k) index.lane[k] += step.lane[k];
    return index;
}
#endif

PYALIGN_INLINE VectorI load_index(const int64_t* from) {
    VectorI value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

PYALIGN_INLINE void store_index(int64_t* to, VectorI value) {
    std::memcpy(to, &value, sizeof(value));
}

// first, first + step, first + 2 step, ...
PYALIGN_INLINE VectorI index_from(int64_t first, int64_t step) {
    int64_t lanes[Lanes<double>::count];
    for (int k = 0; k < Lanes<double>::count; ++k) lanes[k] = first + k * step;
    return load_index(lanes);
}

PYALIGN_INLINE float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

PYALIGN_INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

PYALIGN_INLINE float widen(BFloat value) {
    return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

// Shifting exponent and mantissa into place leaves a number 2^112 too small, also for subnormals; infinity and NaN
// then need the exponent that the product cannot give them.
PYALIGN_INLINE float widen(Half value) {
    const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
    const uint32_t sign = (value.bits & 0x8000u) << 16;
    const uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p112f);
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return from_bits(scaled | special | sign);
}

PYALIGN_INLINE float widen(float value) {
    return value;
}
PYALIGN_INLINE double widen(double value) {
    return value;
}

// Round to nearest, ties to even; NaN stays NaN.
PYALIGN_INLINE void narrow(float value, BFloat* to) {
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

PYALIGN_INLINE void narrow(float value, Half* to) {
    const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    // Normal halves: rebias and round in integers. Below 2^-14 adding 0.5 lets the float adder round to a multiple of
    // 2^-24.
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t tiny = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;
    const uint32_t big = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    to->bits = static_cast<uint16_t>((magnitude >= 0x477ff000u ? big : finite) | sign);
}

PYALIGN_INLINE void narrow(float value, float* to) {
    *to = value;
}
PYALIGN_INLINE void narrow(double value, double* to) {
    *to = value;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
