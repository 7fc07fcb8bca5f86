// Shortest augmenting paths: Dijkstra's algorithm over columns, from a row without a column to a column without a row.
#pragma once

#include <algorithm>
#include <limits>

#include "linear_assignment/linear_assignment.h"
#include "linear_assignment/row_scans.h"

namespace pyalign {

template <typename Cost>
class PathSearch {
  public:
    explicit PathSearch(RowScans<Cost>& rows) : rows_(rows), work_(rows.work), whole_rows_(rows.m <= kWholeRows) {
        std::fill_n(work_.distance, (rows.m + 7) / 8 * 8, kInfinity);
    }

    // Gives row `start` a column and lowers v to where all pairs are tight again.
    AssignmentOutcome augment(int32_t start) {
        done_ = touched_ = 0;
        reached_ = -kInfinity;
        sink_ = -1;
        const AssignmentOutcome outcome = whole_rows_ ? through_rows(start) : through_candidates(start);
        if (outcome != AssignmentOutcome::solved) return outcome;
        for (int32_t k = 0; k < done_; ++k) work_.v[work_.done[k]] = work_.done_v[k] + (work_.done_at[k] - reached_);
        rows_.v_fell();
        flip(work_, start, sink_);
        return AssignmentOutcome::solved;
    }

    // Exchanges pairs along a path that `from` describes.
    static void flip(Workspace& work, int32_t start, int32_t column) {
        for (int32_t j = column;;) {
            const int32_t i = work.from[j];
            work.row_of[j] = i;
            std::swap(work.column_of[i], j);
            if (i == start) return;
        }
    }

  private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    static constexpr int32_t kWholeRows = 640;  // columns up to which whole rows are as fast as a heap

    bool interrupted() { return ++scans_ % 16 == 0 && rows_.interrupt.stopped(); }

    // Gives the row of the column.
    int32_t finish_column(int32_t j) {
        work_.done[done_] = j, work_.done_v[done_] = work_.v[j], work_.done_at[done_++] = reached_;
        work_.distance[j] = -kInfinity;
        return work_.row_of[j];
    }

    // What the distances of the paths through the row of the k-th column that is done have to be lowered by.
    double offset(int32_t k) const {
        const int32_t j = work_.done[k];
        return (rows_.cost.at(work_.row_of[j], j) - work_.done_v[k]) - work_.done_at[k];
    }

    // All columns at the same distance are taken at once; one without a row among them ends the path.
    AssignmentOutcome through_rows(int32_t start) {
        const CostMatrix<Cost>& cost = rows_.cost;
        int32_t i = start, next = 0;
        double h = 0.0;
        while (true) {
            if (interrupted()) return AssignmentOutcome::interrupted;
            const double least =
                rows_.kernels.relax(cost.row(i), work_.v, rows_.m, cost.sign, h, i, work_.distance, work_.from);
            if (next == done_ || least <= reached_) {
                if (!(least < kInfinity)) return AssignmentOutcome::infeasible;
                reached_ = std::max(reached_, least);
                if (take_all_at(least)) break;
            }
            i = work_.row_of[work_.done[next]];
            h = offset(next++);
        }
        std::fill_n(work_.distance, rows_.m, kInfinity);
        return AssignmentOutcome::solved;
    }

    bool take_all_at(double distance) {
        const int32_t count = rows_.table.equal(work_.distance, rows_.m, distance, work_.found);
        for (int32_t k = 0; k < count; ++k) {
            if (work_.row_of[work_.found[k]] < 0) {
                sink_ = work_.found[k];
                return true;
            }
        }
        for (int32_t k = 0; k < count; ++k) {
            const int32_t j = work_.found[k];
            finish_column(j);
            work_.distance[j] = kInfinity;
            work_.v[j] = -kInfinity;  // so that no row reaches it until the path is found
        }
        return false;
    }

    // Candidates first; a label on the heap stands for what a row has beside them.
    AssignmentOutcome through_candidates(int32_t start) {
        work_.labels.clear();
        work_.ready.clear();
        limit_ = kInfinity;
        int32_t whole = 0;
        const int64_t before = scans_;
        for (int32_t i = start; i >= 0; i = next_row(&whole)) {
            if (interrupted()) return AssignmentOutcome::interrupted;
            work_.reach[i] = i == start ? 0.0 : offset(done_ - 1);
            relax_candidates(i);
        }
        for (int32_t k = 0; k < touched_; ++k) work_.distance[work_.touched[k]] = kInfinity;
        if (sink_ < 0) return AssignmentOutcome::infeasible;
        reached_ = std::max(reached_, limit_);
        whole_rows_ = 4 * whole > scans_ - before + 16;
        return AssignmentOutcome::solved;
    }

    void relax_candidates(int32_t i) {
        const double h = work_.reach[i];
        const int32_t count = rows_.table.reach_listed(rows_.columns_of(i), rows_.costs_of(i), rows_.lists.size[i],
                                                       work_.v, h, work_.distance, limit_, work_.found, work_.found_at);
        label(i, count);
        if (rows_.lists.floor[i] - h < limit_) push({rows_.lists.floor[i] - h, -1 - i});
    }

    void label(int32_t i, int32_t count) {
        for (int32_t k = 0; k < count; ++k) {
            const int32_t j = work_.found[k];
            const double distance = work_.found_at[k];
            if (!(distance < limit_)) continue;
            if (!(work_.distance[j] < kInfinity)) work_.touched[touched_++] = j;
            work_.distance[j] = distance;
            work_.from[j] = i;
            if (work_.row_of[j] < 0) {
                limit_ = distance, sink_ = j;
            } else if (distance <= reached_) {
                work_.ready.push_back(j);
            } else {
                push({distance, j});
            }
        }
    }

    void push(Label label) {
        work_.labels.push_back(label);
        std::push_heap(work_.labels.begin(), work_.labels.end());
    }

    // The row of the nearest column that is not done; -1 where a column without a row is nearer.
    int32_t next_row(int32_t* whole) {
        while (true) {
            if (!work_.ready.empty() && reached_ < limit_) {
                const int32_t j = work_.ready.back();
                work_.ready.pop_back();
                if (work_.distance[j] > -kInfinity) return finish_column(j);
                continue;
            }
            if (work_.labels.empty() || !(work_.labels.front().distance < limit_)) return -1;
            const Label nearest = work_.labels.front();
            std::pop_heap(work_.labels.begin(), work_.labels.end());
            work_.labels.pop_back();
            if (nearest.what < 0) {
                look_further(-1 - nearest.what, whole);
            } else if (work_.distance[nearest.what] == nearest.distance) {
                reached_ = std::max(reached_, nearest.distance);
                return finish_column(nearest.what);
            }
        }
    }

    // Better candidates for a row, or, where they are as good as can be, all of its columns.
    void look_further(int32_t i, int32_t* whole) {
        if (!rows_.chosen_now(i)) {
            rows_.choose(i);
            relax_candidates(i);
            return;
        }
        ++*whole;
        const int32_t count = rows_.kernels.reach(rows_.cost.row(i), work_.v, rows_.m, rows_.cost.sign, work_.reach[i],
                                                  work_.distance, limit_, work_.found, work_.found_at);
        label(i, count);
    }

    RowScans<Cost>& rows_;
    Workspace& work_;
    bool whole_rows_;
    int32_t done_ = 0, touched_ = 0, sink_ = -1;
    double reached_ = 0.0, limit_ = 0.0;
    int64_t scans_ = 0;
};

}  // namespace pyalign
