// Vectors of float or double that are loaded from and stored to every floating dtype; interleaving; stores past the
// caches. Inlined into the kernels file that includes it, like core/vector.h.
#pragma once

#include <type_traits>
#include <utility>

#include "core/vector.h"

#if defined(__GNUC__)
#define PYALIGN_PREFETCH_READ(address) __builtin_prefetch(address, 0, 2)
#else
#define PYALIGN_PREFETCH_READ(address) static_cast<void>(address)
#endif

#if defined(__GNUC__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PYALIGN_HAS_ZIP 1
#endif
#endif

namespace pyalign {
namespace PYALIGN_SIMD {

// What elements are computed in: double in double, all others in float.
template <typename Element>
struct RealFor {
    typedef float type;
};
template <>
struct RealFor<double> {
    typedef double type;
};
template <typename Element>
using RealOf = typename RealFor<Element>::type;

template <bool kPast, typename Value>
PYALIGN_INLINE void store_value(void* to, const Value& value) {
#if defined(PYALIGN_HAS_AVX)
    if constexpr (kPast && sizeof(Value) == 16) {
        return _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)value);
    } else if constexpr (kPast && sizeof(Value) == 32) {
        return _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)value);
#if defined(__AVX512F__)
    } else if constexpr (kPast && sizeof(Value) == 64) {
        return _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)value);
#endif
    }
#endif
    std::memcpy(to, &value, sizeof(value));
}

// Stores past the caches are not ordered before later stores, such as those that tell other threads, without this.
PYALIGN_INLINE void store_fence() {
#if defined(PYALIGN_HAS_AVX)
    _mm_sfence();
#endif
}

// Two vectors of the reals that as many consecutive elements stand for; which lane holds which element is the dtype's
// own affair, the same in `load_pair` and `store_pair`.
template <typename Real>
struct Pair {
    typename VectorOf<Real>::type half[2];
};
template <typename Element>
struct PairCount {
    static constexpr int value = 2 * Lanes<RealOf<Element>>::count;
};

template <typename Real>
PYALIGN_INLINE Pair<Real> load_pair(const Real* from) {
    return {{load(from), load(from + Lanes<Real>::count)}};
}

template <bool kPast, typename Real>
PYALIGN_INLINE void store_pair(Real* to, const Pair<Real>& pair) {
    for (int k = 0; k < 2; ++k) store_value<kPast>(to + k * Lanes<Real>::count, pair.half[k]);
}

#if defined(__GNUC__)
template <typename Item, int kBytes>
using ShortVector __attribute__((vector_size(kBytes))) = Item;

typedef uint32_t VectorU __attribute__((vector_size(PYALIGN_VECTOR_BYTES)));

// Elements at even places in one half, those at odd places in the other: nothing is shuffled.
PYALIGN_INLINE Pair<float> load_pair(const BFloat* from) {
    VectorU bits;
    std::memcpy(&bits, from, sizeof(bits));
    return {{(VectorF)(bits << 16), (VectorF)(bits & 0xffff0000u)}};
}

// As narrow(float, BFloat*), in the upper 16 bits.
PYALIGN_INLINE VectorU narrow_above(VectorF value) {
    const VectorU bits = (VectorU)value;
    const VectorU rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return value != value ? bits | 0x400000u : rounded;
}

template <bool kPast>
PYALIGN_INLINE void store_pair(BFloat* to, const Pair<float>& pair) {
    const VectorU even = narrow_above(pair.half[0]) >> 16, odd = narrow_above(pair.half[1]) & 0xffff0000u;
    store_value<kPast>(to, even | odd);
}
#else
PYALIGN_INLINE Pair<float> load_pair(const BFloat* from) {
    float lanes[PairCount<BFloat>::value];
    for (int k = 0; k < PairCount<BFloat>::value; ++k) lanes[k] = widen(from[k]);
    return load_pair(lanes);
}

template <bool kPast>
PYALIGN_INLINE void store_pair(BFloat* to, const Pair<float>& pair) {
    for (int k = 0; k < PairCount<BFloat>::value; ++k) {
        narrow(pair.half[k / Lanes<float>::count][k % Lanes<float>::count], to + k);
    }
}
#endif

PYALIGN_INLINE Pair<float> load_pair(const Half* from) {
    float lanes[PairCount<Half>::value];
    for (int k = 0; k < PairCount<Half>::value; ++k) lanes[k] = widen(from[k]);
    return load_pair<float>(lanes);
}

template <bool kPast>
PYALIGN_INLINE void store_pair(Half* to, const Pair<float>& pair) {
    float lanes[PairCount<Half>::value];
    store_pair<false, float>(lanes, pair);
    for (int k = 0; k < PairCount<Half>::value; ++k) narrow(lanes[k], to + k);
}

#if defined(PYALIGN_HAS_ZIP)
template <int... kLane>
PYALIGN_INLINE Pair<float> apart(VectorF a, VectorF b, std::integer_sequence<int, kLane...>) {
    return {{__builtin_shufflevector(a, b, (2 * kLane)...), __builtin_shufflevector(a, b, (2 * kLane + 1)...)}};
}
#endif

// Sums that lie in the order of the elements, as the pair of those elements.
template <typename Element, typename Real>
PYALIGN_INLINE Pair<Real> load_sums(const Real* from) {
#if defined(PYALIGN_HAS_ZIP)
    if constexpr (std::is_same_v<Element, BFloat>) {
        constexpr int kLanes = Lanes<float>::count;
        return apart(load(from), load(from + kLanes), std::make_integer_sequence<int, kLanes>());
    }
#endif
    return load_pair<Real>(from);
}

// Products in float64, where those of floats are exact.
PYALIGN_INLINE void add_products(const Pair<float>& a, const Pair<float>& b, VectorD* sums) {
    float lanes[2][2 * Lanes<float>::count];
    store_pair<false, float>(lanes[0], a);
    store_pair<false, float>(lanes[1], b);
    for (int k = 0; k < 4; ++k) {
        const int at = k * Lanes<double>::count;
        sums[k] = sums[k] + load_as_double(lanes[0] + at) * load_as_double(lanes[1] + at);
    }
}

PYALIGN_INLINE void add_products(const Pair<double>& a, const Pair<double>& b, VectorD* sums) {
    for (int k = 0; k < 2; ++k) sums[k] = sums[k] + a.half[k] * b.half[k];
}

#if defined(PYALIGN_HAS_ZIP)
// Within every 16 bytes: low = a0 b0 a1 b1 ..., high the rest. Crossing them would cost another instruction each.
PYALIGN_INLINE void zip(ShortVector<uint16_t, 16> a, ShortVector<uint16_t, 16> b, ShortVector<uint16_t, 16>& low,
                        ShortVector<uint16_t, 16>& high) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
PYALIGN_INLINE void zip(ShortVector<float, 16> a, ShortVector<float, 16> b, ShortVector<float, 16>& low,
                        ShortVector<float, 16>& high) {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
PYALIGN_INLINE void zip(ShortVector<uint16_t, 32> a, ShortVector<uint16_t, 32> b, ShortVector<uint16_t, 32>& low,
                        ShortVector<uint16_t, 32>& high) {
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27);
    high = __builtin_shufflevector(a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31);
}
PYALIGN_INLINE void zip(ShortVector<float, 32> a, ShortVector<float, 32> b, ShortVector<float, 32>& low,
                        ShortVector<float, 32>& high) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    high = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}

// a = the first 16 bytes of both, b = the last 16 bytes of both.
template <typename Item>
PYALIGN_INLINE void exchange(ShortVector<Item, 32>& a, ShortVector<Item, 32>& b) {
    typedef ShortVector<uint64_t, 32> Words;
    const Words x = (Words)a, y = (Words)b;
    a = (ShortVector<Item, 32>)__builtin_shufflevector(x, y, 0, 1, 4, 5);
    b = (ShortVector<Item, 32>)__builtin_shufflevector(x, y, 2, 3, 6, 7);
}
#endif

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
