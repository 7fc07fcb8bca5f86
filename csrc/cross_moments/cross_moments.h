// Cross moments of two streams: the contract. Samples of a tile are centred by the tile's own mean, multiplied in the
// compute type (float32, or float64 for float64 input), and tiles are merged in float64 after Chan et al. (1983).
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "core/thread_pool.h"

namespace pyalign {

// Where count is 0 the co-moments are not read: their memory need not be cleared.
struct MomentRecord {
    double* count;     // ()
    double* mean_a;    // (n)
    double* mean_b;    // (m)
    double* comoment;  // (n, m)
    double* square_a;  // (n), or (n, n) when full
    double* square_b;  // (m), or (m, m) when full
};

struct MomentInput {
    TensorView x, y;  // equal shapes but for the unit axis
    TensorView mask;  // the sample shape, boolean; data is null when every sample is used
    int64_t axis_x = 0, axis_y = 0;
    bool full = false;
};

// Adds the samples to the record. False, with the record unchanged, when a sum is not finite, or when interrupted.
bool cross_moments_cpu(const MomentInput& input, const MomentRecord& record, int threads, Interrupt& interrupt);

}  // namespace pyalign
