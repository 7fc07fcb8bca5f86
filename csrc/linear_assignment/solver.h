// The phases of one assignment problem; linear_assignment_cpu.cpp says why these.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "linear_assignment/path_search.h"

namespace pyalign {

template <typename Cost>
class Solver {
  public:
    explicit Solver(RowScans<Cost>& rows) : rows_(rows), work_(rows.work), n_(rows.n), m_(rows.m) {}

    AssignmentOutcome solve_cold() {
        clear();
        rows_.v_is_zero(true);
        if (!rows_.open(nullptr)) return AssignmentOutcome::not_finite;
        for (int32_t i = 0; i < n_; ++i) seat(i, -1);
        return improve();
    }

    // Column duals and columns of rows from an earlier answer; both are only hints, and given up where few rows have
    // kept their cheapest columns: they then lead further astray than no duals at all.
    AssignmentOutcome solve_warm(const double* duals, const int32_t* columns) {
        clear();
        rows_.v_is_zero(false);
        std::copy_n(duals, m_, work_.v);
        if (n_ < m_) release_columns(columns);
        if (!rows_.open(columns)) return AssignmentOutcome::not_finite;
        int32_t kept = 0;
        for (int32_t i = 0; i < n_; ++i) {
            seat(i, columns[i]);
            kept += columns[i] >= 0 && work_.column_of[i] == columns[i];
        }
        return kWorthKeeping * kept < n_ ? solve_cold() : improve();
    }

    // Sets u to the largest feasible row duals for v and gives the gap, a sum of non-negative slacks.
    double certify() {
        double gap = 0.0;
        if (rows_.v_is_zero()) {
            for (int32_t i = 0; i < n_; ++i) work_.u[i] = rows_.cost.at(i, work_.column_of[i]);
            return gap;  // every row has its cheapest column
        }
        rows_.each_row(0, n_, [this](int32_t i) {
            work_.u[i] = rows_.price(i);
            return true;
        });
        for (int32_t i = 0; i < n_; ++i) {
            const int32_t j = work_.column_of[i];
            gap += (rows_.cost.at(i, j) - work_.v[j]) - work_.u[i];
        }
        return gap;
    }

  private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    static constexpr int kReleaseRounds = 4, kWorthKeeping = 8;
    static constexpr int64_t kReductions = 16;  // per row, on average

    void clear() {
        std::fill_n(work_.row_of, m_, -1);
        std::fill_n(work_.column_of, n_, -1);
        std::fill_n(work_.seen, m_, 0);
        std::fill_n(work_.v, (m_ + 7) / 8 * 8, 0.0);
        free_ = 0;
    }

    void give(int32_t i, int32_t j) { work_.row_of[j] = i, work_.column_of[i] = j; }

    // Gives row i a column that is cheapest for it and has no row, the wanted one if it can be; or puts it on the list
    // of rows without a column.
    void seat(int32_t i, int32_t wanted) {
        const int32_t first = work_.root[i];
        const double least = work_.u[i];
        if (first >= 0) {
            if (wanted >= 0 && work_.row_of[wanted] < 0 && rows_.cost.at(i, wanted) - work_.v[wanted] == least) {
                return give(i, wanted);
            }
            const int32_t j = work_.row_of[first] < 0 ? first : work_.reach[i] > least ? -1 : free_tight(i, least);
            if (j >= 0) return give(i, j);
        }
        work_.free[free_++] = i;
    }

    int32_t free_tight(int32_t i, double value) {
        const int32_t count = rows_.tight(i, value, work_.found);
        for (int32_t k = 0; k < count; ++k) {
            if (work_.row_of[work_.found[k]] < 0) return work_.found[k];
        }
        return -1;
    }

    // With columns to spare, a column without a row must have dual zero.
    void release_columns(const int32_t* columns) {
        for (int32_t j = 0; j < m_; ++j) work_.v[j] = std::min(work_.v[j], 0.0);
        for (int round = 0; round < kReleaseRounds; ++round) {
            rows_.scan_all();
            std::fill_n(work_.row_of, m_, -1);
            for (int32_t i = 0; i < n_; ++i) {
                const int32_t j = columns[i], first = work_.root[i];
                const bool kept = j >= 0 && work_.row_of[j] < 0 && rows_.cost.at(i, j) - work_.v[j] == work_.u[i];
                if (kept || first >= 0) work_.row_of[kept ? j : first] = i;
            }
            bool raised = false;
            for (int32_t j = 0; j < m_; ++j) {
                if (work_.row_of[j] < 0 && work_.v[j] < 0.0) work_.v[j] = 0.0, raised = true;
            }
            std::fill_n(work_.row_of, m_, -1);
            if (!raised) return;
        }
        std::fill_n(work_.v, m_, 0.0);
    }

    AssignmentOutcome improve() {
        if (free_ > 0) reduce_rows();
        if (free_ > 0) match_tight();
        if (free_ == 0) return AssignmentOutcome::solved;
        PathSearch<Cost> paths(rows_);
        for (int32_t k = 0; k < free_; ++k) {
            const AssignmentOutcome outcome = paths.augment(work_.free[k]);
            if (outcome != AssignmentOutcome::solved) return outcome;
        }
        return AssignmentOutcome::solved;
    }

    // Augmenting row reduction: each free row takes its cheapest column and lowers that column's dual to where its
    // second cheapest costs the same; the row that lost the column goes next. Rows can take columns from each other in
    // very small steps, so the steps are counted.
    void reduce_rows() {
        int64_t budget = kReductions * n_;
        int32_t left = 0;
        for (int32_t k = 0; k < free_; ++k) {
            int32_t i = work_.free[k];
            while (i >= 0 && --budget >= 0 && !(budget % 64 == 0 && rows_.interrupt.stopped())) {
                const int32_t next = reduce(i);
                if (next == i) break;
                i = next;
            }
            if (i >= 0) work_.free[left++] = i;
        }
        free_ = left;
    }

    // Gives the row that has lost its column to row i, -1 for none, i where it takes none.
    int32_t reduce(int32_t i) {
        const Smallest s = rows_.cheapest(i);
        if (!(s.second < kInfinity)) return i;
        const int32_t j = s.first_at, loser = work_.row_of[j];
        const double lowered = work_.v[j] - (s.second - s.first);
        if (lowered < work_.v[j] && lowered > -kInfinity) {
            work_.v[j] = lowered;
            rows_.v_fell();
            if (loser >= 0) work_.column_of[loser] = -1;
            give(i, j);
            return loser;
        }
        const int32_t other = loser < 0 ? j : free_tight(i, s.first);
        if (other < 0) return i;
        give(i, other);
        return -1;
    }

    // Where many columns are equally cheap: augmenting paths of tight pairs only, by breadth-first searches from all
    // free rows at once. A search whose first row has found a column is not continued.
    void match_tight() {
        for (int64_t pass = 1, matched = 1; matched > 0 && free_ > 0 && !rows_.interrupt.stopped(); ++pass) {
            int32_t last = 0;
            matched = 0;
            for (int32_t k = 0; k < free_; ++k) work_.queue[last++] = work_.root[work_.free[k]] = work_.free[k];
            for (int32_t k = 0; k < last; ++k) {
                const int32_t i = work_.queue[k];
                if (work_.column_of[work_.root[i]] < 0) matched += widen(i, pass, &last);
            }
            int32_t left = 0;
            for (int32_t k = 0; k < free_; ++k) {
                if (work_.column_of[work_.free[k]] < 0) work_.free[left++] = work_.free[k];
            }
            free_ = left;
        }
    }

    bool widen(int32_t i, int64_t pass, int32_t* last) {
        const Smallest s = rows_.cheapest(i);
        const int32_t count = s.first_at < 0 ? 0 : rows_.tight(i, s.first, work_.found);
        for (int32_t k = 0; k < count; ++k) {
            const int32_t j = work_.found[k];
            if (work_.seen[j] == pass) continue;
            work_.seen[j] = pass, work_.from[j] = i;
            if (work_.row_of[j] < 0) {
                PathSearch<Cost>::flip(work_, work_.root[i], j);
                return true;
            }
            work_.root[work_.row_of[j]] = work_.root[i];
            work_.queue[(*last)++] = work_.row_of[j];
        }
        return false;
    }

    RowScans<Cost>& rows_;
    Workspace& work_;
    const int32_t n_, m_;
    int32_t free_ = 0;
};

}  // namespace pyalign
