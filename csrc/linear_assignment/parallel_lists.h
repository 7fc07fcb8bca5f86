// What the rows of one problem look at: their cheapest columns, chosen when v was larger.
//
// In every phase v only falls, so cost - v only rises: what bounded the columns beside the list from below still does.
// As long as an answer lies below that bound, 32 entries, one per lane, replace the row; where it does not, the list is
// chosen again.
#pragma once

#include <limits>

#include "linear_assignment/parallel_problem.h"

namespace pyalign {

struct Least {
    double first, second;  // of cost - v; bounded by what is not listed
    int32_t lane;          // that lists the first, -1 where it may lie beside the list
};

template <typename Team, typename Cost>
class RowLists {
  public:
    PYALIGN_PART RowLists(const ParallelProblem& problem, const ParallelWork& work) : p(problem), w(work) {}

    PYALIGN_PART double cost(int32_t i, int32_t j) const {
        return p.sign * static_cast<double>(static_cast<const Cost*>(p.cost)[i * p.stride + j]);
    }

    PYALIGN_PART int64_t entry(int32_t i, int lane) const { return static_cast<int64_t>(i) * kListed + lane; }

    // The two smallest of cost - v.
    template <typename Group>
    PYALIGN_PART Least least(const Group& g, int32_t i) const {
        Lanes<double> key;
        const int32_t size = w.size[i];
        g.lanes([&](int lane) {
            key[lane] = lane < size ? w.costs[entry(i, lane)] - w.v[w.listed[entry(i, lane)]] : kInfinity;
        });
        Lanes<bool> here;
        Least s;
        s.first = g.least(key);
        g.lanes([&](int lane) { here[lane] = lane < size && key[lane] == s.first; });
        s.lane = lowest(g.ballot(here));
        g.lanes([&](int lane) {
            if (lane == s.lane) key[lane] = kInfinity;
        });
        const double floor = w.floor[i];
        s.second = lesser(g.least(key), floor);
        if (s.first > floor) s.lane = -1;
        return s;
    }

    // Lists the cheapest columns of row i for the present v. False where a cost is NaN or -inf.
    template <typename Group>
    PYALIGN_PART bool choose(const Group& g, int32_t i) const {
        Lanes<double> minima(kInfinity);
        Lanes<bool> bad(false);
        g.lanes([&](int lane) {
            bool unusable = false;
            double least = kInfinity;
            PYALIGN_UNROLL
            for (int32_t j = lane; j < p.m; j += kLanes) {
                const double c = cost(i, j);
                unusable |= !(c > -kInfinity);
                least = lesser(c - w.v[j], least);
            }
            minima[lane] = least, bad[lane] = unusable;
        });
        if (g.any(bad)) return false;
        // About twenty columns lie below the fifteenth smallest of the lanes' minima; where more than fit, fewer do.
        if (p.m <= kListed) {
            list(g, i, kInfinity, 0, true);
        } else {
            int k = kAtFirst;
            while (!list(g, i, g.smallest(k, minima), k == 1 ? first_of_ties(i) : 0, k == 1)) k /= 2;
        }
        return true;
    }

    // The first entry of the row that is NaN or -inf.
    PYALIGN_PART int32_t bad_column(int32_t i) const {
        for (int32_t j = 0; j < p.m; ++j) {
            if (!(cost(i, j) > -kInfinity)) return j;
        }
        return -1;
    }

    PYALIGN_PART static int lowest(uint32_t mask) {
#if defined(__CUDACC__)
        return __ffs(static_cast<int>(mask)) - 1;
#else
        int k = 0;
        for (; mask && !(mask & 1); mask >>= 1) ++k;
        return mask ? k : -1;
#endif
    }

    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const ParallelProblem& p;
    const ParallelWork& w;

  private:
    static_assert(kListed == kLanes, "a lane looks at one listed column");
    static constexpr int kAtFirst = 15, kAhead = 4;

    // Rows that tie everywhere begin at different columns.
    PYALIGN_PART int32_t first_of_ties(int32_t i) const {
        return static_cast<int32_t>((static_cast<uint32_t>(i) * 2654435769u) % static_cast<uint32_t>(p.m));
    }

    // Lists the columns with cost - v of at most `bound`, from column `start` on. False where they are too many, unless
    // that is allowed: what does not fit is then bounded by the bound.
    template <typename Group>
    PYALIGN_PART bool list(const Group& g, int32_t i, double bound, int32_t start, bool allowed) const {
        Lanes<double> rest(kInfinity);
        int32_t count = 0;
        for (int32_t base = 0; base < p.m; base += kLanes * kAhead) {
            Lanes<double> costs[kAhead], keys[kAhead];
            g.lanes([&](int lane) {
                PYALIGN_UNROLL
                for (int a = 0; a < kAhead; ++a) {
                    const int32_t k = base + a * kLanes + lane;
                    const int32_t j = column(k, start);
                    costs[a][lane] = k < p.m ? cost(i, j) : kInfinity;
                    keys[a][lane] = k < p.m ? costs[a][lane] - w.v[j] : kInfinity;
                }
            });
            PYALIGN_UNROLL
            for (int a = 0; a < kAhead; ++a) {
                Lanes<bool> here;
                g.lanes([&](int lane) {
                    here[lane] = keys[a][lane] <= bound && keys[a][lane] < kInfinity;
                    if (!here[lane]) rest[lane] = lesser(keys[a][lane], rest[lane]);
                });
                const uint32_t mask = g.ballot(here);
                if (mask == 0) continue;
                g.lanes([&](int lane) {
                    const int32_t at = count + g.bits_in(mask & ((1u << lane) - 1));
                    if (!here[lane] || at >= kListed) return;
                    w.listed[entry(i, at)] = column(base + a * kLanes + lane, start);
                    w.costs[entry(i, at)] = costs[a][lane];
                });
                count += g.bits_in(mask);
            }
            if (count > kListed && !allowed) {
                g.sync();  // other lanes write these places next
                return false;
            }
        }
        double floor = g.least(rest);
        if (count > kListed) floor = bound, count = kListed;
        g.one([&] { w.size[i] = count, w.floor[i] = floor; });
        g.sync();
        return true;
    }

    PYALIGN_PART int32_t column(int32_t k, int32_t start) const {
        return k + start < p.m ? k + start : k + start - p.m;
    }
};

}  // namespace pyalign
