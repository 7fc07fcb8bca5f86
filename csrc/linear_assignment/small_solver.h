// One problem whose costs stay in the cache, after Jonker and Volgenant (1987), in one piece per instruction set: no
// candidates, no heap, no calls between the scans, which here take as long as a call or a branch gone wrong.
//
// Row minima first, as in solver.h, all of them before any column is given away. What follows where they collide:
// - As many columns as rows: column minima of what is left (a classical second reduction, which here is one pass in the
//   cache and leaves half as many path scans), augmenting row reduction for as many steps as there are rows (none, half
//   or twice as many changed little, four times as many cost more than they saved), then paths.
// - Columns to spare, or rows that cost the same everywhere, as those of dead units do: these wait and take what is
// left
//   at last, so columns are to spare for the others, and duals must not rise. Only paths then: row reduction made rows
//   fight for columns that in the end none of them got, which took longer than the paths do.
//
// A path is a shortest one over dense distances, with the columns that are free or done in bit sets: marking them in v
// or the distances made every next scan wait for the store. It takes all columns at the same distance at once. Where
// the second cheapest of the rows are known, a column counts as far away as the nearest that its row can lead to, so
// that the rows of columns that lead nowhere are not scanned: half of the scans on correlations with dead units. Where
// a reduction of columns has made the bounds worthless, to scan the rows for new ones cost what it saved.
// Included by the kernels file after its row scans.
#pragma once

#include "linear_assignment/tracked_least.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

// The first columns of all blocks of eight: a vector of one of them is a load, the sum of two would be work.
struct Blocks {
    double first[kSmallColumns / 8];
    constexpr Blocks() : first() {
        for (int k = 0; k < kSmallColumns / 8; ++k) first[k] = 8.0 * k;
    }
};
constexpr Blocks kBlocks;

PYALIGN_INLINE Eight block_at(int32_t j) {
    return all_eight(kBlocks.first[j / 8]);
}

template <typename Cost>
class SmallSolver {
  public:
    explicit SmallSolver(const SmallProblem<Cost>& problem) : p_(problem), n_(problem.n), m_(problem.m) {}

    SmallOutcome solve(const int32_t* wanted) {
        if (!open(wanted)) return SmallOutcome::not_finite;
        if (wanted && kWorthKeeping * kept_ < n_) {  // as in solver.h
            for (int32_t j = 0; j < (m_ + 7) / 8 * 8; ++j) p_.v[j] = 0.0;
            return solve(nullptr);
        }
        for (int32_t i = 0; i < n_; ++i) {
            if (p_.root[i] < 0) return SmallOutcome::infeasible;
        }
        if (free_ > 0 && !(bounded_ ? find_paths<true>() : find_paths<false>())) return SmallOutcome::infeasible;
        for (int32_t k = 0, spare = 0; k < constant_; ++k) {
            const int32_t i = p_.free[n_ - 1 - k];
            if (cold_) {
                // Columns without a row still have dual zero, the greatest: no other is cheaper for this row.
                while (!unassigned(spare)) ++spare;
                give(i, spare);
            } else if (!augment<false>(i)) {
                return SmallOutcome::infeasible;
            }
        }
        return SmallOutcome::solved;
    }

    // Sets u to feasible row duals for v and gives the gap, a sum of non-negative slacks.
    double certify() {
        double gap = 0.0;
        for (int32_t i = 0; i < n_; ++i) {
            const int32_t j = p_.column_of[i];
            const double reduced = at(i, j) - p_.v[j];
            // No dual is above zero, so the cheapest of a row is a feasible price whatever the other columns cost.
            if (cold_ && p_.v[j] == 0.0 && reduced == p_.u[i]) continue;
            p_.u[i] = feasible(row(i), reduced) ? reduced : price(row(i), p_.v, m_, p_.sign);
            gap += reduced - p_.u[i];
        }
        return gap;
    }

  private:
    static constexpr int kWords = kSmallColumns / 64;
    static constexpr int64_t kReductions = 1;  // per row, on average
    static constexpr int32_t kWorthKeeping = 8;
    static constexpr int32_t kWaits = -2;  // for column_of

    const Cost* row(int32_t i) const { return p_.data + i * p_.stride; }
    double at(int32_t i, int32_t j) const { return p_.sign * static_cast<double>(row(i)[j]); }
    bool unassigned(int32_t j) const { return p_.row_of[j] < 0; }

    PYALIGN_METHOD void give(int32_t i, int32_t j) {
        p_.row_of[j] = i, p_.column_of[i] = j;
        spare_[j / 64] &= ~(Lanes64{1} << (j % 64));
    }

    // Row minima; every row whose cheapest column, or the wanted one among them, is still to be had takes it. A row
    // that costs the same everywhere, as a dead unit does, waits until all others have a column.
    bool open(const int32_t* wanted) {
        cold_ = wanted == nullptr;
        free_ = kept_ = 0;
        bounded_ = !cold_ || (n_ < m_ && 4 * n_ > 3 * m_);
        for (int32_t w = 0; 64 * w < m_; ++w) {
            columns_[w] = spare_[w] = m_ - 64 * w < 64 ? (Lanes64{1} << (m_ - 64 * w)) - 1 : ~Lanes64{0};
        }
        for (int32_t j = 0; j < m_; ++j) p_.row_of[j] = -1;
        if (!(p_.sign > 0.0 ? scan_rows<false>() : scan_rows<true>())) return false;
        // Not before: a branch on where the cheapest column of a row is, gone wrong, would end the next row's scan.
        for (int32_t i = 0; i < n_; ++i) {
            if (p_.column_of[i] == kWaits) {
                p_.free[n_ - 1 - constant_++] = i;
                continue;
            }
            const int32_t j = cold_ ? -1 : wanted[i];
            const bool kept = j >= 0 && unassigned(j) && at(i, j) - p_.v[j] == p_.u[i];
            kept_ += kept;
            seat(i, kept ? j : p_.root[i]);
        }
        if (n_ == m_ && cold_) bounded_ = constant_ > 0 && (16 * constant_ >= n_ || 8 * free_ < n_);
        return true;
    }

    // The cheapest column of each row and a bound of what the others cost, if it is of use.
    template <bool Negated>
    bool scan_rows() {
        for (int32_t i = 0; i < n_; ++i) {
            const bool waits = cold_ && constant(i);
            bounded_ = bounded_ || waits;
            Smallest s{kInfinity, -kInfinity, -1};
            const bool usable = !cold_     ? least(row(i), p_.v, m_, p_.sign, &s)
                                : bounded_ ? scan_row<Negated, TrackedPair>(i, &s)
                                           : scan_row<Negated, TrackedLeast>(i, &s);
            if (!usable) return false;
            p_.u[i] = s.first, p_.reach[i] = s.second, p_.root[i] = s.first_at;
            p_.column_of[i] = waits ? kWaits : -1;
        }
        return true;
    }

    // False where a cost is NaN or -inf.
    template <bool Negated, typename Tracked>
    PYALIGN_METHOD bool scan_row(int32_t i, Smallest* s) const {
        const Cost* costs = row(i);
        const auto cost_at = [costs](int32_t j) PYALIGN_INLINED {
            return Negated ? all_eight(0.0) - load_eight(costs + j) : load_eight(costs + j);
        };
        Tracked tracked;
        Lanes8 usable = 0xff;
        int32_t j = 0;
        for (; j + 16 <= m_; j += 16) {
            const Eight a = cost_at(j), b = cost_at(j + 8);
            usable = lanes_ordered(usable, a, b);
            tracked.add(block_at(j), a);
            tracked.add(block_at(j + 8), b);
        }
        for (; j < m_; j += 8) {
            const Eight a = j + 8 <= m_ ? cost_at(j) : last_costs(costs, j, m_, p_.sign);
            usable = lanes_ordered(usable, a, a);
            tracked.add(block_at(j), a);
        }
        tracked.result(s);
        return usable == 0xff && s->first > -kInfinity;
    }

    bool constant(int32_t i) const {
        const double value = at(i, 0);
        if (at(i, m_ - 1) != value || at(i, m_ / 2) != value || !(value < kInfinity)) return false;
        const Eight values = all_eight(value);
        Lanes8 same = 0xff;
        each_eight(row(i), m_ / 8 * 8, p_.sign,
                   [&](int32_t, Eight cost) PYALIGN_INLINED { same &= lanes_equal(cost, values); });
        int32_t j = m_ / 8 * 8;
        while (j < m_ && at(i, j) == value) ++j;
        return same == 0xff && j == m_;
    }

    void seat(int32_t i, int32_t j) {
        p_.column_of[i] = -1;
        if (j >= 0 && unassigned(j)) {
            give(i, j);
        } else {
            p_.free[free_++] = i;
        }
    }

    // Columns that no row wants become cheaper until one does: v = min over rows of cost - u. It leaves the cheapest
    // columns of the rows as they are. (A constant row would keep all of v at zero. Without such rows in the minima,
    // correlations with dead units took a third longer.)
    void reduce_columns() {
        Lanes64 wanted[kWords] = {};
        for (int32_t k = 0; k < constant_; ++k) p_.u[p_.free[n_ - 1 - k]] = -kInfinity;
        for (int32_t i = 0; i < n_; ++i) {
            if (!(p_.u[i] > -kInfinity)) continue;
            p_.column_of[i] = -1;
            wanted[p_.root[i] / 64] |= Lanes64{1} << (p_.root[i] % 64);
        }
        int32_t j = 0;
        for (; j + 32 <= m_; j += 32) column_minima<4>(j);
        for (; j < m_; j += 8) column_minima<1>(j);
        for (int32_t w = 0; 64 * w < m_; ++w) spare_[w] = columns_[w];
        for (j = 0; j < m_; ++j) {
            p_.row_of[j] = -1;
            const int32_t i = static_cast<int32_t>(p_.distance[j]);
            if (!(p_.v[j] < kInfinity)) {
                p_.v[j] = 0.0;
            } else if (!(wanted[j / 64] >> (j % 64) & 1u) && p_.column_of[i] == -1) {
                give(i, j);
            }
        }
        free_ = 0, cold_ = false;
        for (int32_t i = 0; i < n_; ++i) {
            if (p_.column_of[i] == -1) seat(i, p_.root[i]);
        }
    }

    // v of 8 * Blocks columns, and in distance the first row that has it.
    template <int Blocks>
    PYALIGN_METHOD void column_minima(int32_t j) {
        const Eight signs = all_eight(p_.sign), one = all_eight(1.0);
        Eight least[Blocks], first[Blocks], number = all_eight(0.0);
        PYALIGN_UNROLL
        for (int b = 0; b < Blocks; ++b) least[b] = all_eight(kInfinity), first[b] = number;
        for (int32_t i = 0; i < n_; ++i, number = number + one) {
            const Eight u = all_eight(p_.u[i]);
            PYALIGN_UNROLL
            for (int b = 0; b < Blocks; ++b) {
                const int32_t at = j + 8 * b;
                const Eight reduced = at + 8 <= m_ ? signed_minus(load_eight(row(i) + at), signs, u)
                                                   : last_costs(row(i), at, m_, p_.sign) - u;
                first[b] = choose_less(reduced, least[b], number, first[b]);
                least[b] = lesser(reduced, least[b]);
            }
        }
        PYALIGN_UNROLL
        for (int b = 0; b < Blocks; ++b) {
            store_eight(p_.v + j + 8 * b, least[b]);
            store_eight(p_.distance + j + 8 * b, first[b]);
        }
    }

    PYALIGN_METHOD Smallest cheapest(int32_t i) const {
        TrackedPair pairs[2];
        const double* v = p_.v;
        each_signed(row(i), m_, p_.sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
            pairs[k].add(block_at(j), signed_minus(cost, signs, load_eight(v + j)));
        });
        pairs[0].add(pairs[1]);
        Smallest s;
        pairs[0].result(&s);
        return s;
    }

    // Augmenting row reduction, as in solver.h.
    void reduce_rows() {
        int64_t budget = kReductions * n_;
        int32_t left = 0;
        for (int32_t k = 0; k < free_; ++k) {
            int32_t i = p_.free[k];
            Smallest s = cheapest(i);
            while (i >= 0 && --budget >= 0) {
                const int32_t loser = take_cheapest(i, s);
                if (loser == i) break;
                i = loser;
                if (i >= 0) s = cheapest(i);
            }
            if (i >= 0) p_.free[left++] = i;
        }
        free_ = left;
    }

    // Gives the row that has lost its column to row i, -1 for none, i where it takes none.
    PYALIGN_METHOD int32_t take_cheapest(int32_t i, const Smallest& s) {
        if (!(s.second < kInfinity)) return i;
        const int32_t j = s.first_at, loser = p_.row_of[j];
        const double lowered = p_.v[j] - (s.second - s.first);
        if (lowered < p_.v[j] && lowered > -kInfinity) {
            p_.v[j] = lowered;
            if (loser >= 0) p_.column_of[loser] = -1;
            give(i, j);
            return loser;
        }
        const int32_t other = loser < 0 ? j : spare_at(row(i), s.first);
        if (other < 0) return i;
        give(i, other);
        return -1;
    }

    // The first column without a row whose reduced cost is this; -1 for none.
    int32_t spare_at(const Cost* costs, double value) const {
        const Eight values = all_eight(value);
        const double* v = p_.v;
        for (int32_t j = 0; j < m_; j += 64) {
            const Lanes64 here =
                block_where(costs, j, m_, p_.sign, [&](int32_t k, Eight cost, Eight signs) PYALIGN_INLINED {
                    return lanes_equal(signed_minus(cost, signs, load_eight(v + k)), values);
                });
            if (here & spare_[j / 64]) return j + lowest(here & spare_[j / 64]);
        }
        return -1;
    }

    // Gives all rows a column that have none. False: there is no way.
    template <bool Bounded>
    bool find_paths() {
        if constexpr (Bounded) {
            for (int32_t j = 0; j < (m_ + 7) / 8 * 8; ++j) slack_[j] = 0.0;
            for (int32_t i = 0; i < n_; ++i) {
                if (p_.column_of[i] >= 0) set_slack(i, p_.column_of[i]);
            }
        } else if (n_ == m_) {
            reduce_columns();
            reduce_rows();
        }
        for (int32_t k = 0; k < free_; ++k) {
            if (!augment<Bounded>(p_.free[k])) return false;
        }
        return true;
    }

    // A shortest path from a row without a column to a column without a row, as in path_search.h. False: there is none.
    template <bool Bounded>
    bool augment(int32_t start) {
        int32_t done = 0, next = 0, sink = -1;
        double reached = -kInfinity, least = relax_first<Bounded>(start);
        while (true) {
            if (next == done || least <= reached) {
                if (!(least < kInfinity)) return false;
                reached = least > reached ? least : reached;
                sink = take_all_at<Bounded>(least, &done);
                if (sink >= 0) break;
            }
            const int32_t j = p_.done[next++], i = p_.row_of[j];
            least = relax<Bounded>(i, (at(i, j) - p_.v[j]) - p_.distance[j]);
        }
        lower<Bounded>(p_.distance[sink]);
        flip<Bounded>(start, sink);
        return true;
    }

    // How near a column, or what can be reached through its row, is.
    template <bool Bounded>
    PYALIGN_METHOD Eight key(int32_t j, Eight distance) const {
        return Bounded ? distance + load_eight(static_cast<const double*>(slack_ + j)) : distance;
    }

    // distance = cost - v and from = i for all columns, which are all open. Gives the smallest key.
    template <bool Bounded>
    PYALIGN_METHOD double relax_first(int32_t i) {
        Eight minima[2] = {all_eight(kInfinity), all_eight(kInfinity)};
        const double* v = p_.v;
        double* distance = p_.distance;
        int32_t* from = p_.from;
        each_signed(row(i), m_, p_.sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
            const Eight reach = signed_minus(cost, signs, load_eight(v + j));
            store_eight(distance + j, reach);
            set_lanes(from + j, 0xff, i);
            minima[k] = lesser(key<Bounded>(j, reach), minima[k]);
        });
        for (int32_t w = 0; 64 * w < m_; ++w) open_[w] = columns_[w];
        return least_of(lesser(minima[0], minima[1]));
    }

    // distance = min(distance, (cost - v) - h), from = i where it fell, for the columns that are open. Gives the
    // smallest key.
    template <bool Bounded>
    PYALIGN_METHOD double relax(int32_t i, double h) {
        const Eight hs = all_eight(h);
        Eight minima[2] = {all_eight(kInfinity), all_eight(kInfinity)};
        const double* v = p_.v;
        double* distance = p_.distance;
        int32_t* from = p_.from;
        each_signed(row(i), m_, p_.sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
            const Lanes8 open = static_cast<Lanes8>(open_[j / 64] >> (j % 64)) & 0xffu;
            const Eight old = load_eight(static_cast<const double*>(distance + j));
            const Eight reach = signed_minus(cost, signs, load_eight(v + j)) - hs;
            const Lanes8 fell = lanes_less(open, reach, old);
            const Eight now = pick(fell, reach, old);
            store_eight(distance + j, now);
            set_lanes(from + j, fell, i);
            minima[k] = lesser_among(open, key<Bounded>(j, now), minima[k]);
        });
        return least_of(lesser(minima[0], minima[1]));
    }

    // A column without a row at this key; or -1, and no column there is open any more.
    template <bool Bounded>
    PYALIGN_METHOD int32_t take_all_at(double least, int32_t* done) {
        const Eight wanted = all_eight(least);
        const double* distances = p_.distance;
        for (int32_t w = 0; 64 * w < m_; ++w) {
            Lanes64 here = 0;
            for (int32_t k = 0; k < 64 && 64 * w + k < m_; k += 8) {
                const Eight distance = load_eight(distances + 64 * w + k);
                here |= static_cast<Lanes64>(lanes_equal(key<Bounded>(64 * w + k, distance), wanted)) << k;
            }
            here &= open_[w];
            if (here & spare_[w]) return 64 * w + lowest(here & spare_[w]);
            found_[w] = here;
        }
        for (int32_t w = 0; 64 * w < m_; ++w) {
            open_[w] &= ~found_[w];
            for (Lanes64 here = found_[w]; here; here &= here - 1) p_.done[(*done)++] = 64 * w + lowest(here);
        }
        return -1;
    }

    // v falls where a column is nearer than the end of the path.
    template <bool Bounded>
    void lower(double reached) {
        const Eight end = all_eight(reached), zero = all_eight(0.0);
        double* v = p_.v;
        const double* distance = p_.distance;
        for (int32_t j = 0; j < m_; j += 8) {
            const Eight by = lesser(load_eight(distance + j) - end, zero);
            store_eight(v + j, load_eight(static_cast<const double*>(v + j)) + by);
            if constexpr (Bounded) store_eight(slack_ + j, greater(key<true>(j, by), zero));
        }
    }

    template <bool Bounded>
    void flip(int32_t start, int32_t column) {
        spare_[column / 64] &= ~(Lanes64{1} << (column % 64));
        for (int32_t j = column, i = -1; i != start;) {
            i = p_.from[j];
            const int32_t before = p_.column_of[i];
            p_.row_of[j] = i, p_.column_of[i] = j;
            if constexpr (Bounded) set_slack(i, j);
            j = before;
        }
    }

    PYALIGN_METHOD void set_slack(int32_t i, int32_t j) {
        const double slack = p_.reach[i] - (at(i, j) - p_.v[j]);
        slack_[j] = slack > 0.0 ? slack : 0.0;
    }

    PYALIGN_METHOD bool feasible(const Cost* costs, double u) const {
        const Eight us = all_eight(u);
        const double* v = p_.v;
        Lanes8 broken[2] = {};
        each_signed(costs, m_, p_.sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
            broken[k] |= lanes_less(cost * signs, load_eight(v + j) + us);
        });
        return !(broken[0] | broken[1]);
    }

    const SmallProblem<Cost>& p_;
    const int32_t n_, m_;
    int32_t kept_ = 0;                 // earlier pairs that are still tight
    int32_t free_ = 0, constant_ = 0;  // rows without a column, from the front and from the back of the list
    bool cold_ = true, bounded_ = false;
    // All columns, those without a row, those that the path search has not done, those it does next.
    alignas(64) double slack_[kSmallColumns];
    Lanes64 columns_[kWords] = {}, spare_[kWords] = {}, open_[kWords], found_[kWords];
};

template <typename Cost>
SmallOutcome solve_small(const SmallProblem<Cost>& problem, const int32_t* wanted, double* gap) {
    SmallSolver<Cost> solver(problem);
    const SmallOutcome outcome = solver.solve(wanted);
    if (outcome == SmallOutcome::solved) *gap = solver.certify();
    return outcome;
}

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign
