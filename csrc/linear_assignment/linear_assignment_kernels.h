// Scans of one row of costs, compiled once per instruction set. Ties go to the lowest index in each of them, so that
// every instruction set gives the same assignment. A cost is sign * row[j].
#pragma once

#include <cstdint>

#include "core/kernel_table.h"

namespace pyalign {

struct Smallest {
    double first, second;
    int64_t first_at, second_at;  // -1 where there is none
};

template <typename Cost>
struct AssignmentKernels {
    // Whether no entry is NaN or -inf.
    bool (*usable)(const Cost* row, int64_t m, double sign);
    // best[j] = min(best[j], cost_j), at[j] = i where it fell.
    void (*lower)(const Cost* row, int64_t m, double sign, int64_t i, double* best, int64_t* at);
    // The two smallest of cost_j - v[j].
    Smallest (*smallest)(const Cost* row, const double* v, int64_t m, double sign);
    // distance[j] = min(distance[j], (cost_j - v[j]) - h), from[j] = i where it fell; a column that is done has
    // distance -infinity. Gives the smallest distance of the others and where it is.
    Smallest (*relax)(const Cost* row, const double* v, int64_t m, double sign, double h, int64_t i, double* distance,
                      int64_t* from);
    // Whether u + v[j] <= cost_j everywhere.
    bool (*feasible)(const Cost* row, const double* v, int64_t m, double sign, double u);
};

struct AssignmentTable {
    AssignmentKernels<float> f32;
    AssignmentKernels<double> f64;
    AssignmentKernels<int32_t> i32;
    AssignmentKernels<int64_t> i64;
};

PYALIGN_DECLARE(AssignmentTable, assignment_table)

}  // namespace pyalign
