// Shortest augmenting paths from all rows without a column at once.
//
// Labels are distances, in reduced costs, from the nearest row without a column. They are found by relaxing, round
// after round, the rows of all columns whose label fell: as many rounds as the paths have steps, not as many as there
// are columns. For any bound M, lowering every v by M - label where the label is smaller keeps the duals feasible and
// every pair tight, and makes each shortest path below M tight too. Where n = m the duals of columns without a row are
// free, so M may lie beyond the first path: every tree of the forest that reaches a column without a row is augmented
// in the same phase, more than half of them, and phases are few. Where n < m those duals must stay zero, and M is the
// length of the shortest path.
//
// Rows relax their listed columns. Once no label falls any more, the rows whose bound says that another column might
// still have a label below M look at all of theirs, until there are none.
#pragma once

#include "linear_assignment/parallel_bids.h"

namespace pyalign {

template <typename Team, typename Cost>
class Forest {
  public:
    PYALIGN_PART Forest(Team& team, RowLists<Team, Cost>& lists, int32_t& round)
        : team_(team), lists_(lists), p(lists.p), w(lists.w), round_(round) {}

    // Gives a column to as many rows without one as a phase can, and says how many are left; -1 where no complete
    // assignment avoids the forbidden pairs.
    PYALIGN_PART int32_t phase() {
        const int32_t active = plant();
        if (active == 0) return 0;
        shortest_only_ = p.n < p.m || active == 1;
        limit_ = kInfinity;
        since_ = round_;
        spread(active);
        do {
            limit_ = lesser(limit_, bound());
        } while (look_everywhere());
        if (!(limit_ < kInfinity)) return -1;
        claim();
        const int32_t gained = augment();
        team_.each(p.m, [&](int32_t j) {
            const double label = from_bits(w.label[j]);
            if (label < limit_) w.v[j] += label - limit_;
        });
        team_.sync();
        return active - gained;
    }

  private:
    static constexpr double kInfinity = std::numeric_limits<double>::infinity();

    // Clears the labels and starts from the rows without a column. Gives their number.
    PYALIGN_PART int32_t plant() {
        ++round_;
        team_.first([&] {
            for (int k = 0; k < kCounts; ++k) w.counts[k] = 0;
            w.numbers[kNearest] = bits_of(kInfinity), w.numbers[kFarthest] = 0;
        });
        team_.sync();
        team_.each(p.m, [&](int32_t j) { w.label[j] = bits_of(kInfinity), w.parent[j] = kNobody, w.time[j] = 0; });
        team_.each(p.n, [&](int32_t i) {
            const int32_t j = w.column_of[i];
            w.scanned[i] = w.at[i] = kInfinity, w.nearest[i] = bits_of(kInfinity), w.sink[i] = kNobody;
            if (j >= 0) {
                w.price[i] = w.own[i] - w.v[j];
            } else {
                push(i);
            }
        });
        team_.sync();
        const int32_t active = Team::now(&w.counts[round_ % 3]);
        team_.groups(active, [&](const auto& g, int32_t k) {
            const int32_t i = queue(round_)[k];
            Least s = lists_.least(g, i);
            if (s.lane < 0 && w.floor[i] < kInfinity) {
                choose(g, i);
                s = lists_.least(g, i);
            }
            g.one([&] { w.price[i] = s.first, w.at[i] = 0.0; });
        });
        team_.sync();
        return active;
    }

    // Relaxes until no label falls any more; the queue of this round holds `active` rows.
    PYALIGN_PART void spread(int32_t active) {
        while (active > 0) {
            open_round();
            team_.groups(active, [&](const auto& g, int32_t k) { relax_listed(g, queue(round_ - 1)[k]); });
            team_.sync();
            active = close_round();
        }
    }

    PYALIGN_PART void open_round() {
        ++round_;
        team_.first([&] { w.counts[(round_ + 1) % 3] = w.counts[kColumns0 + (round_ + 1) % 3] = 0; });
    }

    // The rows of the columns whose label fell are relaxed in the next round, with the labels of now.
    PYALIGN_PART int32_t close_round() {
        team_.each(Team::now(&w.counts[kColumns0 + round_ % 3]), [&](int32_t k) {
            const int32_t j = w.columns[k], i = w.row_of[j];
            w.time[j] = round_ - since_;
            if (i < 0) {
                Team::atomic_min(&w.numbers[kNearest], w.label[j]);
            } else {
                w.at[i] = from_bits(w.label[j]);
                push(i);
            }
        });
        team_.sync();
        return Team::now(&w.counts[round_ % 3]);
    }

    // Where columns to spare must keep their dual, no path longer than the shortest one matters; nor to the last row.
    PYALIGN_PART double limit() const {
        return shortest_only_ ? lesser(limit_, from_bits(Team::now(&w.numbers[kNearest]))) : limit_;
    }

    template <typename Group>
    PYALIGN_PART void relax_listed(const Group& g, int32_t i) {
        const double from = w.at[i], price = w.price[i], most = limit();
        const int32_t size = w.size[i];
        if (!(from <= most)) return;
        g.lanes([&](int lane) {
            if (lane < size) relax(w.listed[lists_.entry(i, lane)], w.costs[lists_.entry(i, lane)], from, price, most);
        });
    }

    // Rounding must not make a reduced cost negative, or labels might fall for ever.
    PYALIGN_PART double distance(int32_t j, double cost, double from, double price) const {
        return from + greater((cost - w.v[j]) - price, 0.0);
    }

    PYALIGN_PART void relax(int32_t j, double cost, double from, double price, double most) {
        const double label = distance(j, cost, from, price);
        const uint64_t bits = bits_of(label);
        if (!(label <= most) || !(label < kInfinity) || bits >= Team::now(&w.label[j])) return;
        if (Team::atomic_min(&w.label[j], bits) <= bits) return;
        if (Team::atomic_exchange(&w.mark[j], round_) == round_) return;
        w.columns[Team::atomic_add(&w.counts[kColumns0 + round_ % 3], 1)] = j;
    }

    // The bound M, from the labels of the columns without a row: infinite where none is reached.
    PYALIGN_PART double bound() {
        if (shortest_only_) {
            const double nearest = from_bits(Team::now(&w.numbers[kNearest]));
            team_.sync();
            return nearest;
        }
        team_.first([&] {
            for (int k = 0; k < kBins; ++k) w.counts[kCounts + k] = 0;
        });
        team_.sync();
        each_sink(kInfinity, [&](int32_t j) { Team::atomic_max(&w.numbers[kFarthest], w.label[j]); });
        team_.sync();
        const double nearest = from_bits(Team::now(&w.numbers[kNearest]));
        const double width = (from_bits(Team::now(&w.numbers[kFarthest])) - nearest) / kBins;
        if (!(nearest < kInfinity) || !(width > 0.0) || !(width < kInfinity)) {
            team_.sync();
            return nearest;
        }
        each_sink(kInfinity, [&](int32_t j) {
            const double bin = (from_bits(w.label[j]) - nearest) / width;
            Team::atomic_add(&w.counts[kCounts + (bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1)], 1);
        });
        team_.sync();
        return quantile(nearest, width);
    }

    // Where the given part of the columns without a row is reached.
    PYALIGN_PART double quantile(double nearest, double width) const {
        // Without an early end, so that no load waits for another.
        const int32_t* bins = w.counts + kCounts;
        int32_t all = 0, below = 0, k = 0;
        PYALIGN_UNROLL
        for (int b = 0; b < kBins; ++b) all += bins[b];
        PYALIGN_UNROLL
        for (int b = 0; b < kBins - 1; ++b) {
            below += bins[b];
            k += below * kPartOf < all * kPart;
        }
        team_.sync();
        return nearest + (k + 1) * width;
    }

    template <typename F>
    PYALIGN_PART void each_sink(double most, const F& f) const {
        team_.each(p.m, [&](int32_t j) {
            if (w.row_of[j] < 0 && from_bits(w.label[j]) <= most && from_bits(w.label[j]) < kInfinity) f(j);
        });
    }

    // False where no row needs to look beside its list.
    PYALIGN_PART bool look_everywhere() {
        open_round();
        const double most = limit();
        team_.each(p.n, [&](int32_t i) {
            if (unseen(i, most)) w.waiting[Team::atomic_add(&w.counts[kWaiting], 1)] = i;
        });
        team_.sync();
        const int32_t waiting = Team::now(&w.counts[kWaiting]);
        if (waiting > 0) team_.groups(waiting, [&](const auto& g, int32_t k) { look(g, w.waiting[k], most); });
        team_.sync();
        team_.first([&] { w.counts[kWaiting] = 0; });
        spread(close_round());
        return waiting > 0;
    }

    // Whether a column that row i does not list may have a label up to `most` through it.
    PYALIGN_PART bool unseen(int32_t i, double most) const {
        const double from = w.at[i];
        return from < w.scanned[i] && from + greater(w.floor[i] - w.price[i], 0.0) <= most && w.floor[i] < kInfinity;
    }

    template <typename Group>
    PYALIGN_PART void look(const Group& g, int32_t i, double most) {
        const double from = w.at[i], price = w.price[i];
        if (w.chosen[i] < since_) {
            choose(g, i);
            relax_listed(g, i);
            if (!unseen(i, most)) return;
        }
        g.lanes([&](int lane) {
            PYALIGN_UNROLL
            for (int32_t j = lane; j < p.m; j += kLanes) relax(j, lists_.cost(i, j), from, price, most);
        });
        g.one([&] { w.scanned[i] = from; });
    }

    template <typename Group>
    PYALIGN_PART void choose(const Group& g, int32_t i) {
        lists_.choose(g, i);
        g.one([&] { w.chosen[i] = round_; });
        g.sync();
    }

    // Gives every column below the bound its parent: the lowest row that the label came through. Along parents labels
    // fall, or stay and were found earlier, so they lead to a row without a column.
    PYALIGN_PART void claim() {
        team_.groups(p.n, [&](const auto& g, int32_t i) {
            const double from = w.at[i], price = w.price[i];
            if (!(from <= limit_)) return;
            const int32_t own = w.column_of[i], time = own < 0 ? -1 : w.time[own];
            const auto visit = [&](int32_t j, double cost) {
                const double label = distance(j, cost, from, price);
                if (bits_of(label) != w.label[j] || !(label <= limit_)) return;
                if (from < label || time < w.time[j]) Team::atomic_min(&w.parent[j], i);
            };
            const bool all = w.scanned[i] == from;
            const int32_t size = w.size[i];
            g.lanes([&](int lane) {
                if (!all && lane < size) visit(w.listed[lists_.entry(i, lane)], w.costs[lists_.entry(i, lane)]);
                if (!all) return;
                PYALIGN_UNROLL
                for (int32_t j = lane; j < p.m; j += kLanes) visit(j, lists_.cost(i, j));
            });
        });
        team_.sync();
    }

    // Exchanges pairs along the shortest path of every tree. Gives the number of trees.
    PYALIGN_PART int32_t augment() {
        each_sink(limit_, [&](int32_t j) {
            int32_t i = w.parent[j];
            while (w.column_of[i] >= 0) i = w.parent[w.column_of[i]];
            w.root[j] = i;
            Team::atomic_min(&w.nearest[i], w.label[j]);
        });
        team_.sync();
        each_sink(limit_, [&](int32_t j) {
            if (w.nearest[w.root[j]] == w.label[j]) Team::atomic_min(&w.sink[w.root[j]], j);
        });
        team_.sync();
        // The rows of the queue of plant() are gone; those without a column are found again.
        team_.each(p.n, [&](int32_t i) {
            if (w.sink[i] == kNobody) return;
            Team::atomic_add(&w.counts[kFree], 1);
            flip(i, w.sink[i]);
        });
        team_.sync();
        return Team::now(&w.counts[kFree]);
    }

    PYALIGN_PART void flip(int32_t start, int32_t sink) {
        for (int32_t j = sink;;) {
            const int32_t i = w.parent[j], before = w.column_of[i];
            w.row_of[j] = i, w.column_of[i] = j, w.own[i] = lists_.cost(i, j);
            if (i == start) return;
            j = before;
        }
    }

    PYALIGN_PART int32_t* queue(int32_t round) const { return w.queues + (round & 1) * static_cast<int64_t>(p.n); }

    PYALIGN_PART void push(int32_t i) const { queue(round_)[Team::atomic_add(&w.counts[round_ % 3], 1)] = i; }

    enum Number { kNearest, kFarthest };
    static constexpr int32_t kPart = 7, kPartOf = 8;

    Team& team_;
    RowLists<Team, Cost>& lists_;
    const ParallelProblem& p;
    const ParallelWork& w;
    int32_t& round_;
    int32_t since_ = 0;
    bool shortest_only_ = false;
    double limit_ = kInfinity;
};

}  // namespace pyalign
