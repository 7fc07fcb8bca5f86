// Linear assignment after Jonker and Volgenant (1987): augmenting row reduction gives most rows a column, shortest
// augmenting paths (Crouse 2016 for n < m) the rest. Three things make it fast, and were chosen on real costs.
//
// - It starts from v = 0, not from a column reduction: where every row's cheapest column is another one, as with layers
//   that can be aligned, one pass over the matrix is the whole solution and its certificate. On correlations and
//   weights of trained networks a column reduction first made the later phases two to five times as long.
// - Row reductions are continued for 16 steps per row on average instead of two rounds: with
//   the candidates of row_scans.h a step touches about three cache lines, and far fewer rows are left for the paths.
// - Rows with many equally cheap columns are matched by a search through tight pairs before any dual is changed.
//
// Problems of up to 512 columns stay in the cache and go to small_solver.h.
//
// A warm start reads the matrix once with the earlier v, keeps the earlier pairs that are still tight, and goes on as a
// cold one does; where fewer than one in eight is still tight, it is given up for a cold one, which duals of another
// problem would have made up to 17 times as long. How much it saves depends on how large the change is beside the
// differences between the cheapest costs of a row: after a change by 1 % of the spread, half of the answer to uniform
// costs is another one at n = 512, and the earlier v a worse bound than column minima; to normal costs, a twentieth.
// Lowering v as label-correcting shortest paths do, until the earlier pairs were tight again, was tried:
// it was slower than this everywhere and often slower than a cold start. Where all of v was zero there is nothing to
// keep: a cold start is one read then, which no start can be faster than.
//
// Limit: one read of the costs (n * m * size of an entry); the rest happens in O(n) memory, except that paths through
// few columns, and those of problems for which candidates fail (i * j), scan whole rows. Costs whose rows are not
// contiguous, and those with more rows than columns, are copied in their own dtype.
// The duals are made feasible in floating point at the end, so that the certificate holds for every input.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/simd.h"
#include "linear_assignment/solver.h"

namespace pyalign {
namespace {

// Reads one problem of a batch with rows and columns exchanged where there are more rows than columns.
template <typename Cost>
std::vector<Cost> copy_problem(const Cost* source, int64_t n, int64_t m, int64_t row_stride, int64_t column_stride) {
    std::vector<Cost> copy(static_cast<size_t>(n * m));
    constexpr int64_t block = 32;
    for (int64_t i0 = 0; i0 < n; i0 += block) {
        for (int64_t j0 = 0; j0 < m; j0 += block) {
            for (int64_t i = i0; i < std::min(n, i0 + block); ++i) {
                for (int64_t j = j0; j < std::min(m, j0 + block); ++j) {
                    copy[i * m + j] = source[i * row_stride + j * column_stride];
                }
            }
        }
    }
    return copy;
}

struct Start {
    std::vector<double> duals;
    std::vector<int32_t> columns;
};

// The earlier answer in the coordinates of the solver: minimisation, n <= m. Empty where it cannot be used.
Start read_start(const AssignmentBatch& batch, int64_t b, bool transposed, double sign) {
    Start start;
    if (!batch.start_perm) return start;
    const int64_t* perm = batch.start_perm + b * batch.n;
    const double* duals = transposed ? batch.start_rows + b * batch.n : batch.start_columns + b * batch.m;
    start.duals.assign(duals, duals + (transposed ? batch.n : batch.m));
    double largest = 0.0;
    for (double& dual : start.duals) {
        if (!std::isfinite(dual)) return {};
        dual *= sign;
        largest = std::max(largest, std::abs(dual));
    }
    // Where all rows got their cheapest columns, the earlier answer knows nothing that the costs do not show.
    if (largest == 0.0) return {};
    start.columns.assign(static_cast<size_t>(transposed ? batch.m : batch.n), -1);
    for (int64_t i = 0; i < batch.n; ++i) {
        if (perm[i] < 0 || perm[i] >= batch.m) continue;
        start.columns[transposed ? perm[i] : i] = static_cast<int32_t>(transposed ? i : perm[i]);
    }
    return start;
}

template <typename Cost>
AssignmentFailure first_bad_entry(const CostMatrix<Cost>& cost) {
    for (int32_t i = 0; i < cost.n; ++i) {
        for (int32_t j = 0; j < cost.m; ++j) {
            if (!(cost.at(i, j) > -std::numeric_limits<double>::infinity())) {
                return {AssignmentOutcome::not_finite, 0, 0, i, j};
            }
        }
    }
    return {AssignmentOutcome::not_finite};
}

// One problem with n <= m. The answer is in the workspace, the gap and the objective in `sums`.
template <typename Cost>
class Problem {
  public:
    Problem(const CostMatrix<Cost>& cost, const AssignmentKernels<Cost>& kernels, const AssignmentTable& table,
            Workspace& work, int threads, Interrupt& interrupt)
        : cost_(cost), kernels_(kernels), table_(table), work_(work), threads_(threads), interrupt_(interrupt) {}

    AssignmentOutcome solve(const Start& start) {
        if (cost_.m <= kSmallColumns && kernels_.solve_small) {
            if (!start.duals.empty() && cost_.n == cost_.m) {
                const AssignmentOutcome outcome = solve_small(&start);
                if (outcome != AssignmentOutcome::solved || plausible()) return outcome;
            }
            return solve_small(nullptr);
        }
        work_.prepare(cost_.n, cost_.m, true);
        // With many columns to spare a cold start is hardly more than one pass over the costs.
        if (!start.duals.empty() && 4 * int64_t{cost_.n} > 3 * int64_t{cost_.m}) {
            const AssignmentOutcome outcome = run(&start);
            if (outcome != AssignmentOutcome::solved || plausible()) return outcome;
        }
        return run(nullptr);
    }

    double gap = 0.0, objective = 0.0;

  private:
    AssignmentOutcome solve_small(const Start* start) {
        work_.prepare(cost_.n, cost_.m, false);
        std::fill_n(work_.v, (cost_.m + 7) / 8 * 8, 0.0);
        if (start) std::copy_n(start->duals.data(), cost_.m, work_.v);
        const SmallProblem<Cost> problem{cost_.data,     cost_.stride,  cost_.n,      cost_.m,         cost_.sign,
                                         work_.u,        work_.v,       work_.row_of, work_.column_of, work_.reach,
                                         work_.distance, work_.done_at, work_.done_v, work_.root,      work_.free,
                                         work_.from,     work_.done};
        const SmallOutcome outcome = kernels_.solve_small(problem, start ? start->columns.data() : nullptr, &gap);
        if (outcome != SmallOutcome::solved) {
            return outcome == SmallOutcome::infeasible ? AssignmentOutcome::infeasible : AssignmentOutcome::not_finite;
        }
        objective = 0.0;
        for (int32_t i = 0; i < cost_.n; ++i) objective += cost_.at(i, work_.column_of[i]);
        return AssignmentOutcome::solved;
    }

    AssignmentOutcome run(const Start* start) {
        RowScans<Cost> rows(cost_, kernels_, table_, work_, threads_, interrupt_);
        Solver<Cost> solver(rows);
        const AssignmentOutcome outcome =
            start ? solver.solve_warm(start->duals.data(), start->columns.data()) : solver.solve_cold();
        if (outcome != AssignmentOutcome::solved) return outcome;
        gap = solver.certify();
        objective = 0.0;
        for (int32_t i = 0; i < cost_.n; ++i) objective += cost_.at(i, work_.column_of[i]);
        return outcome;
    }

    // Duals far larger than the costs, from the answer to another problem, leave nothing of the costs in cost - v.
    bool plausible() const {
        double largest = 0.0, dual = 0.0;
        for (int32_t i = 0; i < cost_.n; ++i) {
            largest = std::max(largest, std::abs(cost_.at(i, work_.column_of[i])));
            dual += work_.u[i];
        }
        for (int32_t j = 0; j < cost_.m; ++j) dual += work_.v[j];
        return std::abs(objective - dual) <= 1e-13 * largest * cost_.n && gap <= 1e-13 * largest * cost_.n;
    }

    const CostMatrix<Cost>& cost_;
    const AssignmentKernels<Cost>& kernels_;
    const AssignmentTable& table_;
    Workspace& work_;
    const int threads_;
    Interrupt& interrupt_;
};

template <typename Cost>
AssignmentFailure solve_problem(const AssignmentBatch& batch, int64_t b, double sign, int threads,
                                const AssignmentKernels<Cost>& kernels, const AssignmentTable& table,
                                Interrupt& interrupt) {
    const bool transposed = batch.n > batch.m;
    const int64_t n = transposed ? batch.m : batch.n, m = transposed ? batch.n : batch.m;
    const int64_t row_stride = batch.strides[transposed ? 2 : 1], column_stride = batch.strides[transposed ? 1 : 2];
    const Cost* source = static_cast<const Cost*>(batch.cost) + b * batch.strides[0];
    std::vector<Cost> copy;
    CostMatrix<Cost> cost{source, static_cast<int32_t>(n), static_cast<int32_t>(m), row_stride, sign};
    if (column_stride != 1 && m > 1) {
        copy = copy_problem(source, n, m, row_stride, column_stride);
        cost.data = copy.data(), cost.stride = m;
    }
    thread_local Workspace work;
    Problem<Cost> problem(cost, kernels, table, work, threads, interrupt);
    AssignmentFailure failure;
    failure.outcome = problem.solve(read_start(batch, b, transposed, sign));
    if (failure.outcome == AssignmentOutcome::not_finite) failure = first_bad_entry(cost);
    if (transposed) std::swap(failure.row, failure.column);
    if (failure.outcome != AssignmentOutcome::solved) return failure;

    batch.gap[b] = problem.gap;
    batch.objective[b] = sign * problem.objective;
    const int32_t* perm = transposed ? work.row_of : work.column_of;
    std::copy_n(perm, batch.n, batch.perm + b * batch.n);
    const double *u = transposed ? work.v : work.u, *v = transposed ? work.u : work.v;
    for (int64_t i = 0; i < batch.n; ++i) batch.row_duals[b * batch.n + i] = sign * u[i];
    for (int64_t j = 0; j < batch.m; ++j) batch.col_duals[b * batch.m + j] = sign * v[j];
    work.trim();
    return failure;
}

AssignmentFailure solve_any(const AssignmentBatch& batch, int64_t b, double sign, int threads, Interrupt& interrupt) {
    const AssignmentTable& table = PYALIGN_SELECT(assignment_table);
    const auto solve = [&](const auto& kernels) {
        return solve_problem(batch, b, sign, threads, kernels, table, interrupt);
    };
    switch (batch.dtype) {
        case DType::f64:
            return solve(table.f64);
        case DType::i8:
            return solve(table.i8);
        case DType::u8:
            return solve(table.u8);
        case DType::i16:
            return solve(table.i16);
        case DType::i32:
            return solve(table.i32);
        case DType::i64:
            return solve(table.i64);
        default:
            return solve(table.f32);
    }
}

}  // namespace

AssignmentFailure linear_assignment_cpu(const AssignmentBatch* batches, size_t count, bool maximize, int threads,
                                        Interrupt& interrupt) {
    const double sign = maximize ? -1.0 : 1.0;
    if (count == 1 && batches->b == 1) {
        const AssignmentFailure failure = solve_any(*batches, 0, sign, threads, interrupt);
        return interrupt.stopped() ? AssignmentFailure{AssignmentOutcome::interrupted} : failure;
    }
    std::vector<std::pair<size_t, int64_t>> problems;
    for (size_t k = 0; k < count; ++k) {
        for (int64_t b = 0; b < batches[k].b; ++b) problems.emplace_back(k, b);
    }
    std::vector<AssignmentFailure> failures(problems.size());
    run_each(threads, static_cast<int64_t>(problems.size()), interrupt, [&](int64_t index) {
        const auto [k, b] = problems[index];
        failures[index] = solve_any(batches[k], b, sign, 1, interrupt);
        failures[index].batch = static_cast<int64_t>(k), failures[index].problem = b;
    });
    if (interrupt.stopped()) return {AssignmentOutcome::interrupted};
    for (const AssignmentFailure& failure : failures) {
        if (failure.outcome != AssignmentOutcome::solved) return failure;
    }
    return {};
}

}  // namespace pyalign
