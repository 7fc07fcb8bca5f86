// The inner loop of the permuted sum, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/kernel_table.h"

namespace pyalign {

// One side of a run of elements: element k lies at data[table[k]], or at data[k] without a table.
struct LerpRun {
    char* data;
    const int64_t* table;
    double weight;
};

struct LerpTable {
    // out[k] = sum over terms of weight * term[k], for count elements; float64 sums in float64, the others in float32.
    void (*blend)(DType dtype, const LerpRun& out, const LerpRun* terms, int64_t n_terms, int64_t count);
};

PYALIGN_DECLARE(LerpTable, lerp_table)

}  // namespace pyalign
