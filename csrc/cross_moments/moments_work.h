// What the kernels of cross moments are given: plain records of pointers, sizes and strides, made on the host.
#pragma once

#include "core/block.h"
#include "core/dtype.h"

namespace pyalign {

constexpr int kMostAxes = 12;  // sample axes that cannot be merged

// One stream as the kernels see it. With `vectors`, four entries that follow each other (samples, or units where the
// kernel takes units first) lie side by side in memory, at a multiple of their size.
struct MomentStream {
    const void* data;
    DType dtype;
    int64_t units, unit_stride;
    bool vectors;
};

struct MomentSamples {
    int64_t count;
    int rank;
    int64_t extent[kMostAxes], stride[2][kMostAxes], mask_stride[kMostAxes];
    const uint8_t* mask;  // null when every sample is used
};

// Per unit of one stream, in double, padded to whole blocks of units (zero there).
struct MomentUnits {
    double *shift, *scale;  // what is summed is (x - shift) * scale; scale is a power of two
    uint8_t* unsafe;        // whether raw values would lose accuracy in float32 sums
    int32_t* block_shifts;  // per block of units: whether any unit is unsafe, so that products are of shifted values
    double *sum, *square;   // [slice][unit]: of x - shift and its square; squares of doubles are of scaled values
    double *total, *spread, *delta;  // of the call: sum of x - shift, sum of (x - mean)^2, mean - record's mean
};

// Samples are cut into slices; each block of a kernel sums the products of one tile of unit pairs over one slice.
struct MomentSlices {
    int64_t chunk;         // samples per slice
    int64_t first, count;  // slices of this launch
};

struct PositionedSample {
    int64_t offset[2];
    bool kept;
};

PYALIGN_BOTH PositionedSample position_of(const MomentSamples& samples, int64_t index) {
    PositionedSample found{{0, 0}, true};
    int64_t in_mask = 0;
    // 64-bit divisions are slow on the device, and seldom needed.
    const bool small = samples.count <= 0x7fffffff;
    for (int d = samples.rank - 1; d >= 0; --d) {
        int64_t place, rest;
        if (small) {
            const uint32_t i = static_cast<uint32_t>(index), extent = static_cast<uint32_t>(samples.extent[d]);
            rest = i / extent;
            place = i % extent;
        } else {
            rest = index / samples.extent[d];
            place = index % samples.extent[d];
        }
        index = rest;
        found.offset[0] += place * samples.stride[0][d];
        found.offset[1] += place * samples.stride[1][d];
        in_mask += place * samples.mask_stride[d];
    }
    if (samples.mask) found.kept = samples.mask[in_mask] != 0;
    return found;
}

PYALIGN_BOTH int64_t size_of(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

}  // namespace pyalign
