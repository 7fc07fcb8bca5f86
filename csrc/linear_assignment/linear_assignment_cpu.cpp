// Linear assignment after Jonker and Volgenant (1987): column reduction, reduction transfer and augmenting row
// reduction give most rows a column by row scans alone; shortest augmenting paths (Crouse 2016 for n < m) do the rest.
// Chosen because its scans of whole rows vectorise, and because alignment's cost matrices leave few rows to the last
// phase. The duals are made feasible in floating point at the end, so that the certificate holds for every input.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/simd.h"
#include "linear_assignment/linear_assignment.h"
#include "linear_assignment/linear_assignment_kernels.h"

namespace pyalign {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kReductionRounds = 2;
constexpr int kStartRounds = 4;

template <typename Cost>
class Solver {
  public:
    Solver(const Cost* cost, int64_t n, int64_t m, int64_t row_stride, double sign,
           const AssignmentKernels<Cost>& kernels, Interrupt& interrupt)
        : cost_(cost),
          n_(n),
          m_(m),
          stride_(row_stride),
          sign_(sign),
          kernels_(kernels),
          interrupt_(interrupt),
          column_of(n, -1),
          row_of(m, -1),
          u(n, 0.0),
          v(m, 0.0),
          distance_(m),
          from_(m) {}

    AssignmentFailure check() const {
        for (int64_t i = 0; i < n_; ++i) {
            if (kernels_.usable(row(i), m_, sign_)) continue;
            for (int64_t j = 0; j < m_; ++j) {
                if (!(at(i, j) > -kInfinity)) return {AssignmentOutcome::not_finite, 0, 0, i, j};
            }
        }
        return {};
    }

    // Column duals and columns of rows from an earlier answer; both are only hints.
    void start_from(const std::vector<double>& duals, const std::vector<int64_t>& columns) {
        v = duals;
        if (n_ < m_) {
            for (double& dual : v) dual = std::min(dual, 0.0);
        }
        for (int round = 0;; ++round) {
            if (round == kStartRounds) std::fill(v.begin(), v.end(), 0.0);
            keep_tight(columns);
            if (n_ == m_ || round == kStartRounds) return;
            // With columns to spare, a column without a row must have dual zero.
            bool raised = false;
            for (int64_t j = 0; j < m_; ++j) {
                if (row_of[j] < 0 && v[j] < 0.0) v[j] = 0.0, raised = true;
            }
            if (!raised) return;
        }
    }

    AssignmentOutcome solve(bool warm) {
        if (!warm && n_ == m_ && !reduce_columns()) return AssignmentOutcome::infeasible;
        std::vector<int64_t> free;
        for (int64_t i = 0; i < n_; ++i) {
            if (column_of[i] < 0) free.push_back(i);
        }
        for (int round = 0; round < kReductionRounds && !free.empty(); ++round) reduce_rows(free);
        for (int64_t i : free) {
            const AssignmentOutcome outcome = augment(i);
            if (outcome != AssignmentOutcome::solved) return outcome;
        }
        return AssignmentOutcome::solved;
    }

    // Sets u to the largest feasible row duals for v and gives the gap, a sum of non-negative slacks.
    double certify() {
        double gap = 0.0;
        if (n_ < m_) {
            for (int64_t j = 0; j < m_; ++j) v[j] = row_of[j] < 0 ? 0.0 : std::min(v[j], 0.0);
        }
        for (int64_t i = 0; i < n_; ++i) {
            u[i] = kernels_.smallest(row(i), v.data(), m_, sign_).first;
            // u + v may round up past the cost by one unit.
            while (!kernels_.feasible(row(i), v.data(), m_, sign_, u[i])) u[i] = std::nextafter(u[i], -kInfinity);
            gap += (at(i, column_of[i]) - v[column_of[i]]) - u[i];
        }
        return gap;
    }

    double at(int64_t i, int64_t j) const { return sign_ * static_cast<double>(row(i)[j]); }

  private:
    const Cost* row(int64_t i) const { return cost_ + i * stride_; }

    void keep_tight(const std::vector<int64_t>& columns) {
        std::fill(row_of.begin(), row_of.end(), -1);
        std::fill(column_of.begin(), column_of.end(), -1);
        for (int64_t i = 0; i < n_; ++i) {
            const int64_t j = columns[i];
            if (j < 0 || j >= m_ || row_of[j] >= 0) continue;
            const double least = kernels_.smallest(row(i), v.data(), m_, sign_).first;
            if (least < kInfinity && at(i, j) - v[j] <= least) column_of[i] = j, row_of[j] = i;
        }
    }

    // Column reduction, then reduction transfer from the rows that got exactly one column. False if a column has no
    // edge.
    bool reduce_columns() {
        std::vector<double>& best = v;
        std::fill(best.begin(), best.end(), kInfinity);
        std::vector<int64_t> where(m_, -1), wins(n_, 0);
        for (int64_t i = 0; i < n_; ++i) kernels_.lower(row(i), m_, sign_, i, best.data(), where.data());
        for (int64_t j = m_ - 1; j >= 0; --j) {
            if (where[j] < 0) return false;
            if (wins[where[j]]++ == 0) column_of[where[j]] = j, row_of[j] = where[j];
        }
        for (int64_t i = 0; i < n_; ++i) {
            if (wins[i] != 1) continue;
            const Smallest s = kernels_.smallest(row(i), v.data(), m_, sign_);
            const int64_t j = column_of[i];
            const double others = s.first_at == j ? s.second : s.first;
            // v_j falls until another column is as cheap for row i; the pair stays tight.
            const double slack = others - (at(i, j) - v[j]);
            if (slack > 0.0 && slack < kInfinity) v[j] -= slack;
        }
        return true;
    }

    // Augmenting row reduction: each free row takes its cheapest column and lowers that column's dual to where its
    // second cheapest costs the same; the row that lost the column goes next.
    void reduce_rows(std::vector<int64_t>& free) {
        std::vector<int64_t> left;
        int64_t budget = 4 * n_ + 64;  // rows can take columns from each other in very small steps
        for (size_t k = 0; k < free.size(); ++k) {
            for (int64_t i = free[k]; i >= 0;) {
                if (--budget < 0 || (budget % 64 == 0 && interrupt_.stopped())) {
                    left.push_back(i);
                    break;
                }
                const Smallest s = kernels_.smallest(row(i), v.data(), m_, sign_);
                if (!(s.second < kInfinity)) {
                    left.push_back(i);
                    break;
                }
                int64_t j = s.first_at;
                const double lowered = v[j] - (s.second - s.first);
                const bool falls = lowered < v[j];
                if (falls) {
                    v[j] = lowered;
                } else if (row_of[j] >= 0) {
                    j = s.second_at;
                }
                const int64_t loser = row_of[j];
                if (loser >= 0) column_of[loser] = -1;
                column_of[i] = j, row_of[j] = i;
                i = falls ? loser : -1;
                if (!falls && loser >= 0) left.push_back(loser);
            }
        }
        free.swap(left);
    }

    // A shortest path from row `start` to a column without a row, by Dijkstra over columns.
    AssignmentOutcome augment(int64_t start) {
        std::fill(distance_.begin(), distance_.end(), kInfinity);
        done_.clear();
        done_at_.clear();
        int64_t i = start, sink = -1;
        double h = 0.0, reached = -kInfinity;
        for (int64_t scans = 1; sink < 0; ++scans) {
            if (scans % 16 == 0 && interrupt_.stopped()) return AssignmentOutcome::interrupted;
            const Smallest s = kernels_.relax(row(i), v.data(), m_, sign_, h, i, distance_.data(), from_.data());
            if (s.first_at < 0) return AssignmentOutcome::infeasible;
            int64_t j = s.first_at;
            if (row_of[j] >= 0 && s.first == reached) j = free_among_ties(j, s.first);
            reached = s.first;
            if (row_of[j] < 0) {
                sink = j;
                break;
            }
            done_.push_back(j);
            done_at_.push_back(reached);
            distance_[j] = -kInfinity;
            i = row_of[j];
            h = (at(i, j) - v[j]) - reached;
        }
        for (size_t k = 0; k < done_.size(); ++k) v[done_[k]] += done_at_[k] - reached;
        for (int64_t j = sink; j >= 0;) {
            const int64_t r = from_[j];
            row_of[j] = r;
            std::swap(column_of[r], j);
            if (r == start) break;
        }
        return AssignmentOutcome::solved;
    }

    // Where distances tie, a column without a row ends the path at once.
    int64_t free_among_ties(int64_t otherwise, double distance) const {
        for (int64_t j = 0; j < m_; ++j) {
            if (distance_[j] == distance && row_of[j] < 0) return j;
        }
        return otherwise;
    }

    const Cost* cost_;
    const int64_t n_, m_, stride_;
    const double sign_;
    const AssignmentKernels<Cost>& kernels_;
    Interrupt& interrupt_;

  public:
    std::vector<int64_t> column_of, row_of;
    std::vector<double> u, v;

  private:
    std::vector<double> distance_, done_at_;
    std::vector<int64_t> from_, done_;
};

// Reads one problem of a batch with rows and columns exchanged where there are more rows than columns.
template <typename From, typename Cost>
std::vector<Cost> copy_problem(const From* source, int64_t n, int64_t m, int64_t row_stride, int64_t column_stride) {
    std::vector<Cost> copy(static_cast<size_t>(n * m));
    constexpr int64_t block = 32;
    for (int64_t i0 = 0; i0 < n; i0 += block) {
        for (int64_t j0 = 0; j0 < m; j0 += block) {
            for (int64_t i = i0; i < std::min(n, i0 + block); ++i) {
                for (int64_t j = j0; j < std::min(m, j0 + block); ++j) {
                    copy[i * m + j] = static_cast<Cost>(source[i * row_stride + j * column_stride]);
                }
            }
        }
    }
    return copy;
}

struct Start {
    std::vector<double> duals;
    std::vector<int64_t> columns;
};

// The earlier answer in the coordinates of the solver: minimisation, n <= m. Empty where it cannot be used.
Start read_start(const AssignmentBatch& batch, int64_t b, bool transposed, double sign) {
    Start start;
    if (!batch.start_perm.data) return start;
    const int64_t rows = batch.cost.shape[1], columns = batch.cost.shape[2];
    const int64_t* perm = batch.start_perm.as<int64_t>() + b * rows;
    const double* duals =
        transposed ? batch.start_rows.as<double>() + b * rows : batch.start_columns.as<double>() + b * columns;
    for (int64_t j = 0; j < (transposed ? rows : columns); ++j) {
        start.duals.push_back(sign * duals[j]);
        if (!std::isfinite(duals[j])) return {};
    }
    start.columns.assign(transposed ? columns : rows, -1);
    for (int64_t i = 0; i < rows; ++i) {
        if (perm[i] < 0 || perm[i] >= columns) continue;
        if (transposed) {
            start.columns[perm[i]] = i;
        } else {
            start.columns[i] = perm[i];
        }
    }
    return start;
}

template <typename From, typename Cost>
AssignmentFailure solve_problem(const AssignmentBatch& batch, int64_t b, double sign,
                                const AssignmentKernels<Cost>& kernels, Interrupt& interrupt) {
    const int64_t rows = batch.cost.shape[1], columns = batch.cost.shape[2];
    const bool transposed = rows > columns;
    const int64_t n = transposed ? columns : rows, m = transposed ? rows : columns;
    const int64_t row_stride = batch.cost.strides[transposed ? 2 : 1],
                  column_stride = batch.cost.strides[transposed ? 1 : 2];
    const From* source = batch.cost.as<From>() + b * batch.cost.strides[0];
    std::vector<Cost> copy;
    const Cost* cost = reinterpret_cast<const Cost*>(source);
    int64_t stride = row_stride;
    if (sizeof(From) != sizeof(Cost) || (column_stride != 1 && m > 1)) {
        copy = copy_problem<From, Cost>(source, n, m, row_stride, column_stride);
        cost = copy.data();
        stride = m;
    }
    Solver<Cost> solver(cost, n, m, stride, sign, kernels, interrupt);
    AssignmentFailure failure = solver.check();
    if (transposed) std::swap(failure.row, failure.column);
    if (failure.outcome != AssignmentOutcome::solved) return failure;
    const Start start = read_start(batch, b, transposed, sign);
    if (!start.duals.empty()) solver.start_from(start.duals, start.columns);
    failure.outcome = solver.solve(!start.duals.empty());
    if (failure.outcome != AssignmentOutcome::solved) return failure;

    batch.gap[b] = solver.certify();
    double objective = 0.0;
    for (int64_t i = 0; i < n; ++i) objective += sign * solver.at(i, solver.column_of[i]);
    batch.objective[b] = objective;
    const std::vector<int64_t>& perm = transposed ? solver.row_of : solver.column_of;
    std::copy(perm.begin(), perm.end(), batch.perm + b * rows);
    const std::vector<double>&u = transposed ? solver.v : solver.u, &v = transposed ? solver.u : solver.v;
    for (int64_t i = 0; i < rows; ++i) batch.row_duals[b * rows + i] = sign * u[i];
    for (int64_t j = 0; j < columns; ++j) batch.col_duals[b * columns + j] = sign * v[j];
    return failure;
}

AssignmentFailure solve_any(const AssignmentBatch& batch, int64_t b, double sign, Interrupt& interrupt) {
    const AssignmentTable& table = PYALIGN_SELECT(assignment_table);
    switch (batch.cost.dtype) {
        case DType::f64:
            return solve_problem<double>(batch, b, sign, table.f64, interrupt);
        case DType::i8:
            return solve_problem<int8_t>(batch, b, sign, table.i32, interrupt);
        case DType::u8:
            return solve_problem<uint8_t>(batch, b, sign, table.i32, interrupt);
        case DType::i16:
            return solve_problem<int16_t>(batch, b, sign, table.i32, interrupt);
        case DType::i32:
            return solve_problem<int32_t>(batch, b, sign, table.i32, interrupt);
        case DType::i64:
            return solve_problem<int64_t>(batch, b, sign, table.i64, interrupt);
        default:
            return solve_problem<float>(batch, b, sign, table.f32, interrupt);
    }
}

}  // namespace

AssignmentFailure linear_assignment_cpu(const std::vector<AssignmentBatch>& batches, bool maximize, int threads,
                                        Interrupt& interrupt) {
    std::vector<std::pair<int64_t, int64_t>> problems;
    for (size_t k = 0; k < batches.size(); ++k) {
        for (int64_t b = 0; b < batches[k].cost.shape[0]; ++b) problems.emplace_back(static_cast<int64_t>(k), b);
    }
    std::vector<AssignmentFailure> failures(problems.size());
    const double sign = maximize ? -1.0 : 1.0;
    run_each(threads, static_cast<int64_t>(problems.size()), interrupt, [&](int64_t index) {
        const auto [k, b] = problems[index];
        failures[index] = solve_any(batches[k], b, sign, interrupt);
        failures[index].batch = k, failures[index].problem = b;
    });
    if (interrupt.stopped()) return {AssignmentOutcome::interrupted};
    for (const AssignmentFailure& failure : failures) {
        if (failure.outcome != AssignmentOutcome::solved) return failure;
    }
    return {};
}

}  // namespace pyalign
