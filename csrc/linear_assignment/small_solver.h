// One problem whose costs stay in the cache, after Jonker and Volgenant (1987), in one piece per instruction set: no
// candidates, no heap, no calls between the scans, which here take as long as a call or a branch gone wrong.
//
// Row minima first, as in solver.h; where they collide, column minima of what is left (a classical second reduction,
// which here is one pass in the cache and leaves half as many path scans), augmenting row reduction for as many steps
// as there are rows (half or twice as many changed little, four times as many cost more than they saved), then shortest
// paths over dense distances, with the columns that are free or done in bit sets: marking them in v or the distances
// made every next scan wait for the store. A path takes all columns at the same distance at once. Rows without a
// preference wait until all others have a column. Included by the kernels file after its row scans.
#pragma once

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

// The two smallest of a stream of columns, lane by lane, and where the smallest came from.
struct TrackedPair {
    Eight first = all_eight(kInfinity), second = all_eight(kInfinity), block = all_eight(0.0), at = all_eight(0.0);

    PYALIGN_METHOD void add(Eight key) {
        at = choose_less(key, first, block, at);
        second = lesser(greater(first, key), second);
        first = lesser(key, first);
        block = block + all_eight(8.0);
    }

    PYALIGN_METHOD Smallest result() const {
        Smallest s{kInfinity, kInfinity, -1};
        two_least_of(first, second, &s.first, &s.second);
        if (!(s.first < kInfinity)) return s;
        double blocks[8];
        store_eight(blocks, at);
        Lanes8 here = lanes_equal(first, all_eight(s.first));
        s.first_at = static_cast<int32_t>(blocks[lowest(here)]) + lowest(here);
        for (here &= here - 1; here; here &= here - 1) {
            const int32_t column = static_cast<int32_t>(blocks[lowest(here)]) + lowest(here);
            s.first_at = column < s.first_at ? column : s.first_at;
        }
        return s;
    }
};

template <typename Cost>
class SmallSolver {
  public:
    explicit SmallSolver(const SmallProblem<Cost>& problem) : p_(problem), n_(problem.n), m_(problem.m) {}

    SmallOutcome solve(const int32_t* wanted) {
        if (!open(wanted)) return SmallOutcome::not_finite;
        for (int32_t i = 0; i < n_; ++i) {
            if (p_.root[i] < 0) return SmallOutcome::infeasible;
        }
        if (free_ > 0 && cold_ && n_ == m_ && constant_ == 0) reduce_columns();
        if (free_ > 0) reduce_rows();
        for (int32_t k = 0; k < free_; ++k) {
            if (!augment(p_.free[k])) return SmallOutcome::infeasible;
        }
        for (int32_t k = 0; k < constant_; ++k) {
            if (!augment(p_.free[n_ - 1 - k])) return SmallOutcome::infeasible;
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
        for (int32_t w = 0; 64 * w < m_; ++w) {
            columns_[w] = spare_[w] = m_ - 64 * w < 64 ? (Lanes64{1} << (m_ - 64 * w)) - 1 : ~Lanes64{0};
        }
        for (int32_t j = 0; j < m_; ++j) p_.row_of[j] = -1;
        for (int32_t i = 0; i < n_; ++i) {
            Smallest s;
            if (!(cold_ ? cheapest_cost(i, &s) : least(row(i), p_.v, m_, p_.sign, &s))) return false;
            p_.u[i] = s.first, p_.reach[i] = s.second, p_.root[i] = s.first_at;
            if (cold_ && s.first == s.second && s.first < kInfinity && constant(i)) {
                p_.column_of[i] = -1;
                p_.free[n_ - 1 - constant_++] = i;
                continue;
            }
            const int32_t j = cold_ ? -1 : wanted[i];
            const bool kept = j >= 0 && unassigned(j) && at(i, j) - p_.v[j] == s.first;
            seat(i, kept ? j : s.first_at);
        }
        return true;
    }

    bool constant(int32_t i) const {
        int32_t j = 0;
        while (j < m_ && at(i, j) == p_.u[i]) ++j;
        return j == m_;
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
        for (int32_t i = 0; i < n_; ++i) {
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
            } else if (!(wanted[j / 64] >> (j % 64) & 1u) && p_.column_of[i] < 0) {
                give(i, j);
            }
        }
        free_ = 0, cold_ = false;
        for (int32_t i = 0; i < n_; ++i) {
            if (p_.column_of[i] < 0) seat(i, p_.root[i]);
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
                const Eight cost = at + 8 <= m_ ? load_eight(row(i) + at) * signs : last_costs(row(i), at, m_, p_.sign);
                const Eight reduced = cost - u;
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

    // False where a cost is NaN or -inf.
    PYALIGN_METHOD bool cheapest_cost(int32_t i, Smallest* s) const {
        TrackedPair pair;
        const Eight low = all_eight(-kInfinity);
        Lanes8 usable = 0xff;
        each_eight(row(i), m_, p_.sign, [&](int32_t, Eight cost) PYALIGN_INLINED {
            usable &= lanes_less(low, cost);
            pair.add(cost);
        });
        *s = pair.result();
        return usable == 0xff;
    }

    PYALIGN_METHOD Smallest cheapest(int32_t i) const {
        TrackedPair pair;
        const double* v = p_.v;
        each_eight(row(i), m_, p_.sign,
                   [&](int32_t j, Eight cost) PYALIGN_INLINED { pair.add(cost - load_eight(v + j)); });
        return pair.result();
    }

    // Augmenting row reduction, as in solver.h.
    void reduce_rows() {
        int64_t budget = kReductions * n_;
        int32_t left = 0;
        for (int32_t k = 0; k < free_; ++k) {
            int32_t i = p_.free[k];
            Smallest s{p_.u[i], p_.reach[i], p_.root[i]};
            // What was seen first holds as long as the cheapest column costs the same: the others can only have risen.
            if (!cold_ || s.first_at < 0 || p_.v[s.first_at] < 0.0 || !(s.first < s.second)) s = cheapest(i);
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
            const Lanes64 here = block_where(costs, j, m_, p_.sign, [&](int32_t k, Eight cost) PYALIGN_INLINED {
                return lanes_equal(cost - load_eight(v + k), values);
            });
            if (here & spare_[j / 64]) return j + lowest(here & spare_[j / 64]);
        }
        return -1;
    }

    // A shortest path from a row without a column to a column without a row, as in path_search.h. False: there is none.
    bool augment(int32_t start) {
        int32_t done = 0, next = 0, sink = -1;
        double reached = -kInfinity, least = relax_first(start);
        while (true) {
            if (next == done || least <= reached) {
                if (!(least < kInfinity)) return false;
                reached = least > reached ? least : reached;
                sink = take_all_at(least, &done, reached);
                if (sink >= 0) break;
            }
            const int32_t j = p_.done[next], i = p_.row_of[j];
            least = relax(i, (at(i, j) - p_.v[j]) - p_.done_at[next++]);
        }
        for (int32_t k = 0; k < done; ++k) p_.v[p_.done[k]] += p_.done_at[k] - reached;
        flip(start, sink);
        return true;
    }

    // distance = cost - v and from = i for all columns, which are all open. Gives the smallest distance.
    PYALIGN_METHOD double relax_first(int32_t i) {
        Eight minima = all_eight(kInfinity);
        const double* v = p_.v;
        each_eight(row(i), m_, p_.sign, [&](int32_t j, Eight cost) PYALIGN_INLINED {
            const Eight reach = cost - load_eight(v + j);
            store_eight(p_.distance + j, reach);
            set_lanes(p_.from + j, 0xff, i);
            minima = lesser(reach, minima);
        });
        for (int32_t w = 0; 64 * w < m_; ++w) open_[w] = columns_[w];
        return least_of(minima);
    }

    // distance = min(distance, (cost - v) - h), from = i where it fell, for the columns that are not done. Gives the
    // smallest distance.
    PYALIGN_METHOD double relax(int32_t i, double h) {
        const Eight hs = all_eight(h), infinite = all_eight(kInfinity);
        Eight minima = infinite;
        const double* v = p_.v;
        double* distance = p_.distance;
        each_eight(row(i), m_, p_.sign, [&](int32_t j, Eight cost) PYALIGN_INLINED {
            const Lanes8 open = static_cast<Lanes8>(open_[j / 64] >> (j % 64)) & 0xffu;
            const Eight old = load_eight(static_cast<const double*>(distance + j));
            const Eight reach = (cost - load_eight(v + j)) - hs;
            const Lanes8 fell = lanes_less(reach, old) & open;
            const Eight now = pick(fell, reach, old);
            store_eight(distance + j, now);
            set_lanes(p_.from + j, fell, i);
            minima = lesser(pick(open, now, infinite), minima);
        });
        return least_of(minima);
    }

    // A column without a row at this distance; or -1, and all columns there are done.
    PYALIGN_METHOD int32_t take_all_at(double distance, int32_t* done, double reached) {
        const Eight wanted = all_eight(distance);
        const double* distances = p_.distance;
        for (int32_t w = 0; 64 * w < m_; ++w) {
            Lanes64 here = 0;
            for (int32_t k = 0; k < 64 && 64 * w + k < m_; k += 8) {
                here |= static_cast<Lanes64>(lanes_equal(load_eight(distances + 64 * w + k), wanted)) << k;
            }
            here &= open_[w];
            if (here & spare_[w]) return 64 * w + lowest(here & spare_[w]);
            found_[w] = here;
        }
        for (int32_t w = 0; 64 * w < m_; ++w) {
            open_[w] &= ~found_[w];
            for (Lanes64 here = found_[w]; here; here &= here - 1) {
                p_.done[*done] = 64 * w + lowest(here), p_.done_at[(*done)++] = reached;
            }
        }
        return -1;
    }

    void flip(int32_t start, int32_t column) {
        spare_[column / 64] &= ~(Lanes64{1} << (column % 64));
        for (int32_t j = column, i = -1; i != start;) {
            i = p_.from[j];
            const int32_t before = p_.column_of[i];
            p_.row_of[j] = i, p_.column_of[i] = j;
            j = before;
        }
    }

    PYALIGN_METHOD bool feasible(const Cost* costs, double u) const {
        const Eight us = all_eight(u);
        const double* v = p_.v;
        Lanes8 broken = 0;
        each_eight(costs, m_, p_.sign,
                   [&](int32_t j, Eight cost) PYALIGN_INLINED { broken |= lanes_less(cost, load_eight(v + j) + us); });
        return !broken;
    }

    const SmallProblem<Cost>& p_;
    const int32_t n_, m_;
    int32_t free_ = 0, constant_ = 0;  // rows without a column, from the front and from the back of the list
    bool cold_ = true;
    // All columns, those without a row, those that the path search has not done, those it does next.
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
