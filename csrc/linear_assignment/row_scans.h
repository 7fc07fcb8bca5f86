// The cheapest columns of a row, from all of them or from the candidates that were chosen when v was larger.
//
// In every phase v only falls, so reduced costs cost - v only rise: what bounded the columns that are no candidates
// from below still does. As long as the answer lies below that bound, a few candidates in the cache replace the row;
// where it does not, the candidates are chosen again. Nothing is approximated, and no pass over the matrix has to check
// it.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>

#include "core/thread_pool.h"
#include "linear_assignment/workspace.h"

namespace pyalign {

// (n, m) costs with n <= m and contiguous rows, minimised after multiplication with the sign.
template <typename Cost>
struct CostMatrix {
    const Cost* data;
    int32_t n, m;
    int64_t stride;
    double sign;

    const Cost* row(int32_t i) const { return data + i * stride; }
    double at(int32_t i, int32_t j) const { return sign * static_cast<double>(row(i)[j]); }
};

template <typename Cost>
class RowScans {
  public:
    RowScans(const CostMatrix<Cost>& cost, const AssignmentKernels<Cost>& kernels, const AssignmentTable& table,
             Workspace& work, int threads, Interrupt& interrupt)
        : cost(cost),
          n(cost.n),
          m(cost.m),
          kernels(kernels),
          table(table),
          work(work),
          lists(work.lists),
          interrupt(interrupt),
          threads_(static_cast<int64_t>(n) * m < kShare ? 1 : threads) {}

    // To be called whenever v has fallen.
    void v_fell() { ++version_; }
    bool v_is_zero() const { return version_ == 0; }
    void v_is_zero(bool zero) { version_ = zero ? 0 : 1; }

    // The cheapest columns of all rows: u, root, and in reach the second cheapest. False where a cost is NaN or -inf.
    // `wanted` are columns that rows would keep, null for none.
    bool open(const int32_t* wanted) {
        if (n == 0) return true;
        // Where many rows want the same columns, or lose what they had, candidates will be needed: they are chosen in
        // the same pass.
        const int32_t few = std::max(n / 8, 1);
        if (!each_row(0, few, [this](int32_t i) { return two_of_row(i); })) return false;
        int32_t lost = 0;
        for (int32_t i = 0; wanted && i < few; ++i) lost += work.root[i] != wanted[i];
        const bool crowded = 32 * repeated(few) > few || 16 * lost > few;
        return each_row(few, n, [=, this](int32_t i) { return crowded ? several_of_row(i) : two_of_row(i); });
    }

    // The rows' cheapest columns are written to u and from by an exact scan of all rows.
    void scan_all() {
        each_row(0, n, [this](int32_t i) {
            const Smallest s = kernels.smallest(cost.row(i), work.v, m, cost.sign);
            work.u[i] = s.first, work.root[i] = s.first_at;
            return true;
        });
    }

    // The two smallest of cost - v. Where candidates show only one, `second` is a lower bound of it.
    Smallest cheapest(int32_t i) {
        Smallest s = of_candidates(i);
        if (s.second <= lists.floor[i]) return s;
        if (lists.version[i] != version_) {
            choose(i);
            s = of_candidates(i);
        }
        s.second = std::min(s.second, lists.floor[i]);
        return s;
    }

    // Writes columns with cost - v equal to the smallest (all of the row, or all candidates) and gives their number.
    int32_t tight(int32_t i, double value, int32_t* columns) {
        if (lists.size[i] == 1) return kernels.tight(cost.row(i), work.v, m, cost.sign, value, columns);
        const int32_t* from = columns_of(i);
        const double* costs = costs_of(i);
        int32_t count = 0;
        for (int32_t k = 0; k < lists.size[i]; ++k) {
            if (costs[k] - work.v[from[k]] == value) columns[count++] = from[k];
        }
        return count;
    }

    // The largest u with u + v <= cost everywhere.
    double price(int32_t i) {
        const double u = table.price_listed(columns_of(i), costs_of(i), lists.size[i], work.v);
        // Where cost - v, rounded, is above u, it is so before rounding; without v nothing is rounded.
        if (u < lists.floor[i] || (u == lists.floor[i] && lists.version[i] == 0)) return u;
        return kernels.price(cost.row(i), work.v, m, cost.sign);
    }

    // Chooses candidates for the present v. False where a cost is NaN or -inf.
    bool choose(int32_t i) {
        const int32_t size = kernels.choose(cost.row(i), work.v, m, cost.sign, static_cast<uint32_t>(i), columns_of(i),
                                            costs_of(i), &lists.floor[i]);
        lists.size[i] = size, lists.version[i] = version_;
        return size >= 0;
    }

    bool chosen_now(int32_t i) const { return lists.version[i] == version_; }

    // Runs body(begin, end) for parts of the rows; what is computed must not depend on the parts.
    template <typename Body>
    bool each_row(int32_t begin, int32_t end, const Body& body) {
        if (threads_ == 1) {
            for (int32_t i = begin; i < end; ++i) {
                if (!body(i)) return false;
            }
            return true;
        }
        std::atomic<bool> good{true};
        const int32_t part = std::max<int32_t>(1, static_cast<int32_t>(kPart / m)),
                      parts = (end - begin + part - 1) / part;
        run_each(threads_, parts, interrupt, [&](int64_t p) {
            const int32_t first = begin + static_cast<int32_t>(p) * part;
            for (int32_t i = first; i < std::min(end, first + part); ++i) {
                if (!body(i)) good = false;
            }
        });
        return good;
    }

    int32_t* columns_of(int32_t i) const { return lists.columns + static_cast<int64_t>(i) * kMostCandidates; }
    double* costs_of(int32_t i) const { return lists.costs + static_cast<int64_t>(i) * kMostCandidates; }

    const CostMatrix<Cost>& cost;
    const int32_t n, m;
    const AssignmentKernels<Cost>& kernels;
    const AssignmentTable& table;
    Workspace& work;
    CandidateLists& lists;
    Interrupt& interrupt;

  private:
    static constexpr int64_t kShare = int64_t{1} << 18;  // entries from which threads share one problem
    static constexpr int64_t kPart = int64_t{1} << 15;   // entries that a thread takes at a time

    Smallest of_candidates(int32_t i) const {
        return table.smallest_listed(columns_of(i), costs_of(i), lists.size[i], work.v);
    }

    bool whole_row(int32_t i) {
        Smallest s;
        const bool usable = kernels.least(cost.row(i), version_ == 0 ? nullptr : work.v, m, cost.sign, &s);
        keep(i, s);
        return usable;
    }

    // The same, and the smallest as the only candidate.
    bool two_of_row(int32_t i) {
        if (!whole_row(i)) return false;
        const int32_t j = work.root[i];
        for (int k = 0; k < 8; ++k) {
            columns_of(i)[k] = k == 0 && j >= 0 ? j : 0;
            costs_of(i)[k] = k == 0 && j >= 0 ? cost.at(i, j) : std::numeric_limits<double>::infinity();
        }
        lists.size[i] = j >= 0 ? 1 : 0, lists.floor[i] = work.reach[i], lists.version[i] = version_;
        return true;
    }

    bool several_of_row(int32_t i) {
        if (!choose(i)) return false;
        keep(i, of_candidates(i));
        return true;
    }

    void keep(int32_t i, const Smallest& s) {
        work.u[i] = s.first, work.reach[i] = s.second, work.root[i] = s.first_at;
    }

    // How many of the first rows want a column that another of them wants.
    int32_t repeated(int32_t rows) {
        int32_t count = 0;
        std::fill_n(work.seen, m, 0);
        for (int32_t i = 0; i < rows; ++i) {
            const int32_t j = work.root[i];
            if (j >= 0) count += work.seen[j]++ > 0;
        }
        std::fill_n(work.seen, m, 0);
        return count;
    }

    int64_t version_ = 0;
    const int threads_;
};

}  // namespace pyalign
