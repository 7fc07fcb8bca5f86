// Linear assignment: the contract. One problem is (n, m) with n <= m and contiguous rows; every sum is float64.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"

namespace pyalign {

enum class AssignmentOutcome { solved = 0, not_finite = 1, infeasible = 2, interrupted = 3 };

struct AssignmentFailure {
    AssignmentOutcome outcome = AssignmentOutcome::solved;
    int64_t batch = 0, problem = 0, row = -1, column = -1;
};

// A (b, n, m) batch, its outputs, and an earlier answer where start_perm.data is not null. Outputs are contiguous.
struct AssignmentBatch {
    TensorView cost;
    int64_t* perm;      // (b, n), -1 for rows without a column
    double* row_duals;  // (b, n)
    double* col_duals;  // (b, m)
    double* gap;        // (b)
    double* objective;  // (b)
    TensorView start_rows, start_columns, start_perm;
};

// Solves all problems of all batches; gives the first failure in the order of the list, if any.
AssignmentFailure linear_assignment_cpu(const std::vector<AssignmentBatch>& batches, bool maximize, int threads,
                                        Interrupt& interrupt);

}  // namespace pyalign
