// The phases of one problem for a team; linear_assignment_cuda.cu says why these.
#pragma once

#include "linear_assignment/linear_assignment_outcome.h"
#include "linear_assignment/parallel_paths.h"

namespace pyalign {

template <typename Team, typename Cost>
class ParallelSolver {
  public:
    PYALIGN_PART ParallelSolver(Team& team, const ParallelProblem& problem, const ParallelWork& work)
        : team_(team), p(problem), w(work), lists_(problem, work) {}

    PYALIGN_PART void solve() {
        const bool warm = p.start_columns && start_is_plausible();
        clear(warm);
        if (!open()) return refuse();
        Bids<Team, Cost> bids(team_, lists_, round_);
        bids.seat(warm ? p.start_perm : nullptr);
        bids.run(kRounds);
        Forest<Team, Cost> forest(team_, lists_, round_);
        int32_t left = 1;
        while (left > 0) left = forest.phase();
        if (left < 0) return team_.first([&] { p.status[0] = static_cast<int32_t>(AssignmentOutcome::infeasible); });
        answer();
    }

  private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();
    static constexpr int32_t kRounds = 64;
    static constexpr double kLargestStart = 1024.0;
    enum Number { kBad = 2, kLargestCost, kLargestDual };

    // Duals that are far larger than the costs, from the answer to another problem, leave nothing of them in cost - v.
    PYALIGN_PART bool start_is_plausible() {
        team_.first([&] { w.numbers[kLargestCost] = w.numbers[kLargestDual] = 0; });
        team_.sync();
        team_.groups(p.n, [&](const auto& g, int32_t i) {
            Lanes<double> largest(0.0);
            g.lanes([&](int lane) {
                double most = 0.0;
                PYALIGN_UNROLL
                for (int32_t j = lane; j < p.m; j += kLanes) {
                    const double c = lists_.cost(i, j), size = c < 0.0 ? -c : c;
                    if (size < kInfinity) most = greater(most, size);
                }
                largest[lane] = -most;
            });
            const double most = -g.least(largest);
            g.one([&] { Team::atomic_max(&w.numbers[kLargestCost], bits_of(most)); });
        });
        team_.each(p.m, [&](int32_t j) {
            const double v = p.start_columns[j];
            Team::atomic_max(&w.numbers[kLargestDual], bits_of(v < 0.0 ? -v : v));
        });
        team_.sync();
        // NaN, as bits, is above infinity.
        const double dual = from_bits(Team::now(&w.numbers[kLargestDual]));
        return dual <= kLargestStart * from_bits(Team::now(&w.numbers[kLargestCost]));
    }

    PYALIGN_PART void clear(bool warm) {
        team_.first([&] {
            for (int k = 0; k < kCounts; ++k) w.counts[k] = 0;
            w.numbers[kBad] = ~uint64_t{0};
        });
        team_.each(p.m, [&](int32_t j) {
            w.v[j] = warm ? p.sign * p.start_columns[j] : 0.0;
            w.row_of[j] = w.mark[j] = -1;
            w.parent[j] = kNobody;
        });
        team_.each(p.n, [&](int32_t i) { w.column_of[i] = w.want[i] = -1, w.chosen[i] = 0; });
        team_.sync();
    }

    // The list of every row, and the check of every cost.
    PYALIGN_PART bool open() {
        team_.groups(p.n, [&](const auto& g, int32_t i) {
            if (lists_.choose(g, i)) return;
            g.one([&] {
                const uint64_t at = static_cast<uint64_t>(i) << 32 | static_cast<uint32_t>(lists_.bad_column(i));
                Team::atomic_min(&w.numbers[kBad], at);
            });
        });
        team_.sync();
        return Team::now(&w.numbers[kBad]) == ~uint64_t{0};
    }

    PYALIGN_PART void refuse() {
        team_.first([&] {
            const int32_t i = static_cast<int32_t>(w.numbers[kBad] >> 32);
            const int32_t j = static_cast<int32_t>(w.numbers[kBad] & 0xffffffff);
            p.status[0] = static_cast<int32_t>(AssignmentOutcome::not_finite);
            p.status[1] = p.exchanged ? j : i, p.status[2] = p.exchanged ? i : j;
        });
    }

    // The largest u with u + v <= cost in floating point, the certificate, and the answer in the caller's orientation.
    PYALIGN_PART void answer() {
        double *slack = w.sums, *matched = slack + p.n, *sums = matched + p.n;
        team_.groups(p.n, [&](const auto& g, int32_t i) {
            const double u = price(g, i);
            g.one([&] {
                const int32_t j = w.column_of[i];
                (p.exchanged ? p.col_duals : p.row_duals)[i] = p.sign * u;
                slack[i] = (w.own[i] - w.v[j]) - u, matched[i] = w.own[i];
                if (!p.exchanged) p.perm[i] = j;
            });
        });
        team_.each(p.m, [&](int32_t j) {
            (p.exchanged ? p.row_duals : p.col_duals)[j] = p.sign * w.v[j];
            if (p.exchanged) p.perm[j] = w.row_of[j];
        });
        team_.sync();
        const int32_t chunks = (p.n + kChunk - 1) / kChunk;
        team_.groups(2 * chunks, [&](const auto& g, int32_t k) {
            const double part = sum(g, k < chunks ? slack : matched, (k % chunks) * kChunk, p.n);
            g.one([&] { sums[k] = part; });
        });
        team_.sync();
        team_.first([&] {
            double gap = 0.0, objective = 0.0;
            for (int32_t k = 0; k < chunks; ++k) gap += sums[k], objective += sums[chunks + k];
            *p.gap = gap, *p.objective = p.sign * objective;
            p.status[0] = static_cast<int32_t>(AssignmentOutcome::solved);
        });
    }

    // In parts of a fixed size, so that the sum is the same for every team.
    template <typename Group>
    PYALIGN_PART double sum(const Group& g, const double* x, int32_t begin, int32_t n) const {
        Lanes<double> part;
        const int32_t end = begin + kChunk < n ? begin + kChunk : n;
        g.lanes([&](int lane) {
            double total = 0.0;
            PYALIGN_UNROLL
            for (int32_t k = begin + lane; k < end; k += kLanes) total += x[k];
            part[lane] = total;
        });
        return g.sum(part);
    }

    // Where the listed columns give less than the bound of all others, they are enough: what is above u rounded is so
    // before rounding.
    template <typename Group>
    PYALIGN_PART double price(const Group& g, int32_t i) const {
        const Least s = lists_.least(g, i);
        const int32_t size = w.size[i];
        double u = s.first;
        const bool listed = u < w.floor[i];
        Lanes<double> key(kInfinity);
        if (!listed) {
            g.lanes([&](int lane) {
                double least = kInfinity;
                PYALIGN_UNROLL
                for (int32_t j = lane; j < p.m; j += kLanes) least = lesser(lists_.cost(i, j) - w.v[j], least);
                key[lane] = least;
            });
            u = g.least(key);
        }
        // u + v may round up past the cost by one unit.
        for (Lanes<bool> broken;; u = below(u)) {
            g.lanes([&](int lane) {
                bool above = false;
                if (listed) {
                    const int64_t at = lists_.entry(i, lane);
                    above = lane < size && w.costs[at] < w.v[w.listed[at]] + u;
                } else {
                    PYALIGN_UNROLL
                    for (int32_t j = lane; j < p.m; j += kLanes) above |= lists_.cost(i, j) < w.v[j] + u;
                }
                broken[lane] = above;
            });
            if (!g.any(broken)) return u;
        }
    }

    PYALIGN_PART static double below(double x) { return from_ordered(ordered(x == 0.0 ? -0.0 : x) - 1); }

    Team& team_;
    const ParallelProblem& p;
    const ParallelWork& w;
    RowLists<Team, Cost> lists_;
    int32_t round_ = 0;
};

}  // namespace pyalign
