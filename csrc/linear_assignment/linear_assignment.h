// Linear assignment: the contract. One problem is (n, m) with n <= m and contiguous rows; every sum is float64.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "linear_assignment/linear_assignment_outcome.h"

namespace pyalign {

struct AssignmentFailure {
    AssignmentOutcome outcome = AssignmentOutcome::solved;
    int64_t batch = 0, problem = 0, row = -1, column = -1;
};

// b problems of (n, m) costs with their strides in elements, their outputs, and an earlier answer unless start_perm is
// null. Outputs and earlier answers are contiguous.
struct AssignmentBatch {
    const void* cost;
    DType dtype;
    int64_t b, n, m;
    int64_t strides[3];
    int64_t* perm;      // (b, n), -1 for rows without a column
    double* row_duals;  // (b, n)
    double* col_duals;  // (b, m)
    double* gap;        // (b)
    double* objective;  // (b)
    const double *start_rows, *start_columns;
    const int64_t* start_perm;
};

// Solves all problems of all batches; gives the first failure in the order of the list, if any.
AssignmentFailure linear_assignment_cpu(const AssignmentBatch* batches, size_t count, bool maximize, int threads,
                                        Interrupt& interrupt);

}  // namespace pyalign
