// One tile of a slice: which samples it has, and how four entries at a time come from memory.
#pragma once

#include "core/narrow.h"
#include "cross_moments/moments_work.h"

namespace pyalign {

struct alignas(16) FourWords {
    uint32_t word[4];
};
struct alignas(8) TwoWords {
    uint32_t word[2];
};

// Offsets of the samples that the next tiles hold, for as many samples as a block has threads, in two halves: one is
// read while the other is filled.
template <int kThreads>
struct SampleTable {
    enum Flag : uint8_t { kExists = 1, kKept = 2 };
    int64_t offset[2][2][kThreads];
    uint8_t flags[2][kThreads];

    PYALIGN_BOTH void fill(const MomentSamples& samples, int64_t begin, int64_t end, int64_t batch, int t) {
        const int half = static_cast<int>(batch & 1);
        const int64_t index = begin + batch * kThreads + t;
        PositionedSample found{{0, 0}, false};
        if (index < end) found = position_of(samples, index);
        offset[half][0][t] = found.offset[0];
        offset[half][1][t] = found.offset[1];
        flags[half][t] = static_cast<uint8_t>((index < end ? kExists : 0) | (found.kept ? kKept : 0));
    }
};

// Four entries as they lie in memory: four floats, or four 16-bit numbers in the first two words. Where `loads` is not
// set for an entry its bits are zero.
template <int kWords>
PYALIGN_BOTH void load_four(const MomentStream& from, const int64_t (&offset)[4], const bool (&loads)[4], bool vectors,
                            uint32_t (&to)[kWords]) {
    const bool narrow = kWords == 2 || from.dtype != DType::f32;
    PYALIGN_UNROLLED
    for (int w = 0; w < kWords; ++w) to[w] = 0;
    if (vectors) {
        if (!loads[0]) return;
        if (narrow) {
            const TwoWords got = *aligned<TwoWords>(static_cast<const uint16_t*>(from.data) + offset[0]);
            to[0] = got.word[0], to[1] = got.word[1];
        } else {
            const FourWords got = *aligned<FourWords>(static_cast<const float*>(from.data) + offset[0]);
            PYALIGN_UNROLLED
            for (int w = 0; w < kWords; ++w) to[w] = got.word[w];
        }
        return;
    }
    PYALIGN_UNROLLED
    for (int e = 0; e < 4; ++e) {
        if (!loads[e]) continue;
        if (narrow) {
            to[e / 2] |= static_cast<uint32_t>(static_cast<const uint16_t*>(from.data)[offset[e]]) << (16 * (e & 1));
        } else {
            to[e % kWords] = static_cast<const uint32_t*>(from.data)[offset[e]];
        }
    }
}

template <int kWords>
PYALIGN_BOTH float entry_of(DType dtype, const uint32_t (&words)[kWords], int e) {
    if (kWords == 4 && dtype == DType::f32) return float_of_bits(words[e % kWords]);
    const uint16_t bits = static_cast<uint16_t>(words[e / 2] >> (16 * (e & 1)));
    return dtype == DType::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// What one launch of products works on, whatever it sums in.
template <typename Sum>
struct ProductWork {
    MomentStream a, b;
    MomentUnits units_a, units_b;
    MomentSamples samples;
    MomentSlices slices;
    int which_a, which_b;  // whose strides
    bool upper, counts;    // only pairs with column >= row; whether sums of the units are wanted
    int64_t padded_a, padded_b;
    Sum* partial;   // [slice of this launch][tile row][tile column][tile][tile]
    double* count;  // [slice]: samples kept
};

}  // namespace pyalign
