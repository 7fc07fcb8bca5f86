// Weighted sums of permuted tensors, and their products with another tensor: the contract. All have one shape and
// dtype.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"

namespace pyalign {

// Slot i of an axis of count * r entries takes entry indices[i / r] * r + i % r; no indices: nothing moves.
struct AxisPermutation {
    const int64_t* indices = nullptr;
    int64_t count = 0;
};

struct PermutedTerm {
    TensorView tensor;
    double weight;
    std::vector<AxisPermutation> perms;  // one per axis, indices within range
};

// Interrupted, out is partly written.
void permuted_sum_cpu(const TensorView& out, const std::vector<PermutedTerm>& terms, int threads, Interrupt& interrupt);

// The sum over all entries of `with` times each permuted term; weights are not used.
std::vector<double> permuted_dots_cpu(const TensorView& with, const std::vector<PermutedTerm>& terms, int threads,
                                      Interrupt& interrupt);

}  // namespace pyalign
