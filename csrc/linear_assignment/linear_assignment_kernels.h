// Scans of one row of costs, compiled once per instruction set, eight columns at a time on each of them, so that every
// instruction set gives the same assignment. A cost is sign * row[j]; arrays over columns are padded to a multiple of
// eight.
#pragma once

#include <cstdint>

#include "core/kernel_table.h"

namespace pyalign {

// The cheapest candidates of a row: room for `kMostCandidates`, padded to a multiple of eight with infinite costs.
constexpr int kMostCandidates = 48;

struct Smallest {
    double first, second;  // the second equals the first where two columns tie
    int32_t first_at;      // the lowest column with the first, -1 where there is none
};

// Problems of at most this many columns can be solved in one piece.
constexpr int32_t kSmallColumns = 512;

enum class SmallOutcome { solved, not_finite, infeasible };

// Such a problem, its answer, and what the search for it needs: arrays over n rows and over m columns, padded.
template <typename Cost>
struct SmallProblem {
    const Cost* data;
    int64_t stride;
    int32_t n, m;
    double sign;
    double *u, *v;
    int32_t *row_of, *column_of;
    double *reach, *distance, *done_at, *done_v;
    int32_t *root, *free, *from, *done;
};

template <typename Cost>
struct AssignmentKernels {
    // The two smallest of cost_j - v[j], or of cost_j where v is null; false if a cost is NaN or -inf.
    bool (*least)(const Cost* row, const double* v, int32_t m, double sign, Smallest* s);
    // The same without the check.
    Smallest (*smallest)(const Cost* row, const double* v, int32_t m, double sign);
    // Writes the columns where cost_j - v[j] equals `value`, ascending, and gives their number.
    int32_t (*tight)(const Cost* row, const double* v, int32_t m, double sign, double value, int32_t* columns);
    // Chooses the columns whose cost_j - v[j] is small and gives their number; `floor` bounds all the others from
    // below. Among ties at the edge the choice begins at a column that depends on `seed`. -1: NaN or -inf.
    int32_t (*choose)(const Cost* row, const double* v, int32_t m, double sign, uint32_t seed, int32_t* columns,
                      double* costs, double* floor);
    // distance[j] = min(distance[j], (cost_j - v[j]) - h), from[j] = i where it fell. Gives the smallest distance.
    double (*relax)(const Cost* row, const double* v, int32_t m, double sign, double h, int32_t i, double* distance,
                    int32_t* from);
    // Writes the columns with (cost_j - v[j]) - h < min(distance[j], limit), and those distances; gives their number.
    int32_t (*reach)(const Cost* row, const double* v, int32_t m, double sign, double h, const double* distance,
                     double limit, int32_t* reached, double* reached_at);
    // The largest u with u + v[j] <= cost_j everywhere, in floating point.
    double (*price)(const Cost* row, const double* v, int32_t m, double sign);
    // The whole problem: columns of rows and feasible duals, from the given v; without wanted columns v must be zero.
    // Null for the types that are always solved row by row.
    SmallOutcome (*solve_small)(const SmallProblem<Cost>& problem, const int32_t* wanted, double* gap);
};

struct AssignmentTable {
    AssignmentKernels<float> f32;
    AssignmentKernels<double> f64;
    AssignmentKernels<int8_t> i8;
    AssignmentKernels<uint8_t> u8;
    AssignmentKernels<int16_t> i16;
    AssignmentKernels<int32_t> i32;
    AssignmentKernels<int64_t> i64;

    // smallest, reach and price of the candidates of a row.
    Smallest (*smallest_listed)(const int32_t* columns, const double* costs, int32_t size, const double* v);
    int32_t (*reach_listed)(const int32_t* columns, const double* costs, int32_t size, const double* v, double h,
                            const double* distance, double limit, int32_t* reached, double* reached_at);
    double (*price_listed)(const int32_t* columns, const double* costs, int32_t size, const double* v);
    // Writes the columns j < m where values[j] equals `value`, ascending, and gives their number.
    int32_t (*equal)(const double* values, int32_t m, double value, int32_t* columns);
};

PYALIGN_DECLARE(AssignmentTable, assignment_table)

}  // namespace pyalign
