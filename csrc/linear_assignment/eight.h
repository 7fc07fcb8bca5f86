// Eight doubles at a time on every instruction set, so that sums over lanes, groups of columns and ties are the same on
// all of them. Everything is inlined into the kernels file that includes it, inside that file's own namespace.
#pragma once

#include <cstdint>
#include <limits>

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {

#if defined(_MSC_VER) && !defined(__clang__)
#define PYALIGN_METHOD __forceinline
#define PYALIGN_INLINED
#else
#define PYALIGN_METHOD inline __attribute__((always_inline))
#define PYALIGN_INLINED __attribute__((always_inline))
#endif

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kParts = 8 / Lanes<double>::count;

struct Eight {
    VectorD part[kParts];
};

// Bit k stands for lane k, or for column k of a block of 64.
typedef uint32_t Lanes8;
typedef uint64_t Lanes64;

PYALIGN_INLINE Eight all_eight(double value) {
    Eight all;
    for (int p = 0; p < kParts; ++p) all.part[p] = broadcast(value);
    return all;
}

template <typename T>
PYALIGN_INLINE Eight load_eight(const T* from) {
    Eight all;
    for (int p = 0; p < kParts; ++p) all.part[p] = load_as_double(from + p * Lanes<double>::count);
    return all;
}

PYALIGN_INLINE void store_eight(double* to, Eight value) {
    for (int p = 0; p < kParts; ++p) store(to + p * Lanes<double>::count, value.part[p]);
}

PYALIGN_INLINE Eight operator-(Eight a, Eight b) {
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] - b.part[p];
    return a;
}

PYALIGN_INLINE Eight operator+(Eight a, Eight b) {
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] + b.part[p];
    return a;
}

PYALIGN_INLINE Eight operator*(Eight a, Eight b) {
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] * b.part[p];
    return a;
}

// a * signs - b, where signs are 1 or -1: the product is exact, so that it makes no difference whether it is fused.
PYALIGN_INLINE Eight signed_minus(Eight a, Eight signs, Eight b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    a.part[0] = (VectorD)_mm512_fmsub_pd((__m512d)a.part[0], (__m512d)signs.part[0], (__m512d)b.part[0]);
#elif defined(PYALIGN_HAS_AVX)
    for (int p = 0; p < kParts; ++p) {
        a.part[p] = (VectorD)_mm256_fmsub_pd((__m256d)a.part[p], (__m256d)signs.part[p], (__m256d)b.part[p]);
    }
#else
    for (int p = 0; p < kParts; ++p) a.part[p] = a.part[p] * signs.part[p] - b.part[p];
#endif
    return a;
}

// b where neither is smaller, as the instruction does.
PYALIGN_INLINE VectorD lesser(VectorD a, VectorD b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return (VectorD)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(PYALIGN_HAS_AVX)
    return (VectorD)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
    return choose(less(a, b), a, b);
#endif
}

PYALIGN_INLINE VectorD greater(VectorD a, VectorD b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return (VectorD)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(PYALIGN_HAS_AVX)
    return (VectorD)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return choose(less(b, a), a, b);
#endif
}

PYALIGN_INLINE Eight lesser(Eight a, Eight b) {
    for (int p = 0; p < kParts; ++p) a.part[p] = lesser(a.part[p], b.part[p]);
    return a;
}

PYALIGN_INLINE Eight greater(Eight a, Eight b) {
    for (int p = 0; p < kParts; ++p) a.part[p] = greater(a.part[p], b.part[p]);
    return a;
}

PYALIGN_INLINE Lanes8 bits_of(VectorI where) {
    Lanes8 bits = 0;
    for (int k = 0; k < Lanes<double>::count; ++k) bits |= static_cast<Lanes8>(where[k] & 1) << k;
    return bits;
}

PYALIGN_INLINE Lanes8 lanes_less(Eight a, Eight b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return _mm512_cmp_pd_mask((__m512d)a.part[0], (__m512d)b.part[0], _CMP_LT_OQ);
#else
    Lanes8 bits = 0;
    for (int p = 0; p < kParts; ++p) {
#if defined(PYALIGN_HAS_AVX)
        const Lanes8 four = _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a.part[p], (__m256d)b.part[p], _CMP_LT_OQ));
#else
        const Lanes8 four = bits_of(less(a.part[p], b.part[p]));
#endif
        bits |= four << (p * Lanes<double>::count);
    }
    return bits;
#endif
}

PYALIGN_INLINE Lanes8 lanes_equal(Eight a, Eight b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return _mm512_cmp_pd_mask((__m512d)a.part[0], (__m512d)b.part[0], _CMP_EQ_OQ);
#else
    Lanes8 bits = 0;
    for (int p = 0; p < kParts; ++p) {
#if defined(PYALIGN_HAS_AVX)
        const Lanes8 four = _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a.part[p], (__m256d)b.part[p], _CMP_EQ_OQ));
#else
        const Lanes8 four = bits_of(equal(a.part[p], b.part[p]));
#endif
        bits |= four << (p * Lanes<double>::count);
    }
    return bits;
#endif
}

// The lanes of the set where neither is NaN.
PYALIGN_INLINE Lanes8 lanes_ordered(Lanes8 among, Eight a, Eight b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return _mm512_mask_cmp_pd_mask(static_cast<__mmask8>(among), (__m512d)a.part[0], (__m512d)b.part[0], _CMP_ORD_Q);
#else
    return among & lanes_equal(a, a) & lanes_equal(b, b);
#endif
}

// The lanes of the set where a is less than b.
PYALIGN_INLINE Lanes8 lanes_less(Lanes8 among, Eight a, Eight b) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    return _mm512_mask_cmp_pd_mask(static_cast<__mmask8>(among), (__m512d)a.part[0], (__m512d)b.part[0], _CMP_LT_OQ);
#else
    return among & lanes_less(a, b);
#endif
}

// Lane by lane `then` where a is less than b, `otherwise` elsewhere.
PYALIGN_INLINE Eight choose_less(Eight a, Eight b, Eight then, Eight otherwise) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    const __mmask8 where = _mm512_cmp_pd_mask((__m512d)a.part[0], (__m512d)b.part[0], _CMP_LT_OQ);
    otherwise.part[0] = (VectorD)_mm512_mask_mov_pd((__m512d)otherwise.part[0], where, (__m512d)then.part[0]);
#else
    for (int p = 0; p < kParts; ++p) {
        otherwise.part[p] = choose(less(a.part[p], b.part[p]), then.part[p], otherwise.part[p]);
    }
#endif
    return otherwise;
}

// Lane k of `then` where bit k is set, of `otherwise` elsewhere.
PYALIGN_INLINE Eight pick(Lanes8 where, Eight then, Eight otherwise) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    otherwise.part[0] =
        (VectorD)_mm512_mask_mov_pd((__m512d)otherwise.part[0], static_cast<__mmask8>(where), (__m512d)then.part[0]);
    return otherwise;
#else
    constexpr int count = Lanes<double>::count;
    for (int p = 0; p < kParts; ++p) {
        int64_t lanes[count];
        for (int k = 0; k < count; ++k) lanes[k] = -static_cast<int64_t>(where >> (p * count + k) & 1u);
        otherwise.part[p] = choose(load_index(lanes), then.part[p], otherwise.part[p]);
    }
    return otherwise;
#endif
}

// Lane by lane the lesser of both in the lanes of the set, `otherwise` elsewhere.
PYALIGN_INLINE Eight lesser_among(Lanes8 where, Eight a, Eight otherwise) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    const __m512d old = (__m512d)otherwise.part[0];
    otherwise.part[0] = (VectorD)_mm512_mask_min_pd(old, static_cast<__mmask8>(where), (__m512d)a.part[0], old);
    return otherwise;
#else
    return lesser(pick(where, a, all_eight(kInfinity)), otherwise);
#endif
}

PYALIGN_INLINE Eight gather_eight(const double* from, const int32_t* at) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    Eight all;
    all.part[0] = (VectorD)_mm512_i32gather_pd(index, from, 8);
    return all;
#else
    double lanes[8];
    for (int k = 0; k < 8; ++k) lanes[k] = from[at[k]];
    return load_eight(static_cast<const double*>(lanes));
#endif
}

PYALIGN_INLINE double least_of(Eight a) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    const __m512d all = (__m512d)a.part[0];
    const __m256d four = _mm256_min_pd(_mm512_castpd512_pd256(all), _mm512_extractf64x4_pd(all, 1));
    const __m128d two = _mm_min_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_min_sd(two, _mm_unpackhi_pd(two, two)));
#else
    double lanes[8];
    store_eight(lanes, a);
    for (int width = 4; width; width /= 2) {
        for (int k = 0; k < width; ++k) lanes[k] = lanes[k] < lanes[k + width] ? lanes[k] : lanes[k + width];
    }
    return lanes[0];
#endif
}

// The two smallest of the lanes of both, where no lane of `second` is below that of `first`.
PYALIGN_INLINE void two_least_of(Eight first, Eight second, double* least, double* next) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    const __m512d f = (__m512d)first.part[0], s = (__m512d)second.part[0];
    const __m256d f0 = _mm512_castpd512_pd256(f), f1 = _mm512_extractf64x4_pd(f, 1);
    const __m256d s4 = _mm256_min_pd(_mm512_castpd512_pd256(s), _mm512_extractf64x4_pd(s, 1));
    const __m256d f4 = _mm256_min_pd(f0, f1), t4 = _mm256_min_pd(s4, _mm256_max_pd(f0, f1));
    const __m128d f2 = _mm256_castpd256_pd128(f4), f3 = _mm256_extractf128_pd(f4, 1);
    const __m128d s2 = _mm_min_pd(_mm256_castpd256_pd128(t4), _mm256_extractf128_pd(t4, 1));
    const __m128d g = _mm_min_pd(f2, f3), t = _mm_min_pd(s2, _mm_max_pd(f2, f3));
    const __m128d gh = _mm_unpackhi_pd(g, g), th = _mm_unpackhi_pd(t, t);
    *least = _mm_cvtsd_f64(_mm_min_sd(g, gh));
    *next = _mm_cvtsd_f64(_mm_min_sd(_mm_min_sd(t, th), _mm_max_sd(g, gh)));
#else
    double f[8], s[8];
    store_eight(f, first);
    store_eight(s, second);
    for (int width = 4; width; width /= 2) {
        for (int k = 0; k < width; ++k) {
            const double low = f[k] < f[k + width] ? f[k] : f[k + width];
            const double high = f[k] < f[k + width] ? f[k + width] : f[k];
            const double rest = s[k] < s[k + width] ? s[k] : s[k + width];
            f[k] = low, s[k] = high < rest ? high : rest;
        }
    }
    *least = f[0], *next = s[0];
#endif
}

PYALIGN_INLINE double greatest_of(Eight a) {
    return -least_of(all_eight(0.0) - a);
}

PYALIGN_INLINE int lowest(Lanes64 bits) {
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int k = 0;
    while (!(bits >> k & 1u)) ++k;
    return k;
#endif
}

// to[k] = value for every lane k of the set.
PYALIGN_INLINE void set_lanes(int32_t* to, Lanes8 where, int32_t value) {
#if defined(__AVX512F__) && defined(PYALIGN_HAS_AVX)
    _mm256_mask_storeu_epi32(to, static_cast<__mmask8>(where), _mm256_set1_epi32(value));
#else
    for (; where; where &= where - 1) to[lowest(where)] = value;
#endif
}

// The next smaller number of a finite one.
PYALIGN_INLINE double below(double value) {
    int64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (value == 0.0) {
        bits = INT64_MIN + 1;
    } else {
        bits += value > 0.0 ? -1 : 1;
    }
    std::memcpy(&value, &bits, sizeof(bits));
    return value;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
