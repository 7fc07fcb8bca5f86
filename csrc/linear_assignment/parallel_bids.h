// Row reductions, all at once: every row without a column bids for its cheapest one. The bid is v lowered to where the
// row's second cheapest column costs the same, so that a pair is always the cheapest of its row; per column the lowest
// v wins, and the row that lost the column bids in the next round. The winners depend on no order of threads: a bid is
// one integer, its v (rounded up, which no bid minds) with the row's number in the last bits.
#pragma once

#include "linear_assignment/parallel_lists.h"

namespace pyalign {

enum ParallelCount { kRows0, kRows1, kRows2, kColumns0, kColumns1, kColumns2, kWaiting, kFree };

template <typename Team, typename Cost>
class Bids {
  public:
    PYALIGN_PART Bids(Team& team, RowLists<Team, Cost>& lists, int32_t& round)
        : team_(team), lists_(lists), p(lists.p), w(lists.w), round_(round) {
        for (int32_t n = p.n - 1; n > 0; n >>= 1) mask_ = mask_ << 1 | 1;
    }

    // Gives each row the column that it had before, where that is among its cheapest, or its cheapest one, unless a
    // row before it wants the same. No dual changes: where the cheapest columns are all different, this is the answer.
    PYALIGN_PART void seat(const int64_t* before) {
        team_.groups(p.n, [&](const auto& g, int32_t i) {
            const Least s = lists_.least(g, i);
            if (s.lane < 0) return;
            g.one([&] {
                const int64_t earlier = before ? before[i] : -1;
                int32_t j = w.listed[lists_.entry(i, s.lane)];
                if (earlier >= 0 && earlier < p.m) {
                    const int32_t k = static_cast<int32_t>(earlier);
                    if (lists_.cost(i, k) - w.v[k] == s.first) j = k;
                }
                w.want[i] = j;
                Team::atomic_min(&w.parent[j], i);
            });
        });
        team_.sync();
        team_.each(p.n, [&](int32_t i) {
            const int32_t j = w.want[i];
            if (j >= 0 && w.parent[j] == i) {
                w.row_of[j] = i, w.column_of[i] = j, w.own[i] = lists_.cost(i, j);
            } else {
                push(i);
            }
        });
        team_.sync();
    }

    // Runs rounds until no row bids any more, or too many rounds are done.
    PYALIGN_PART void run(int32_t rounds) {
        int32_t active = Team::now(&w.counts[round_ % 3]);
        team_.each(p.m, [&](int32_t j) { w.label[j] = kNoBid; });
        team_.first([&] { w.counts[(round_ + 1) % 3] = 0; });
        team_.sync();
        while (active > 0 && rounds-- > 0) {
            ++round_;
            team_.first([&] { w.counts[(round_ + 1) % 3] = 0; });
            team_.groups(active, [&](const auto& g, int32_t k) { offer(g, queue(round_ - 1)[k]); });
            team_.sync();
            const int32_t waiting = Team::now(&w.counts[kWaiting]);  // only the first half of a round adds to it
            team_.each(active, [&](int32_t k) { settle(queue(round_ - 1)[k]); });
            team_.sync();
            active = Team::now(&w.counts[round_ % 3]);
            if (waiting > 0 && waiting >= active) active += look_again(active, waiting);
        }
        team_.sync();
    }

  private:
    static constexpr uint64_t kNoBid = ~uint64_t{0};

    // The rows that bid in the round after the given one.
    PYALIGN_PART int32_t* queue(int32_t round) const { return w.queues + (round & 1) * static_cast<int64_t>(p.n); }

    PYALIGN_PART void push(int32_t i) const { queue(round_)[Team::atomic_add(&w.counts[round_ % 3], 1)] = i; }

    template <typename Group>
    PYALIGN_PART void offer(const Group& g, int32_t i) {
        const Least s = lists_.least(g, i);
        int32_t lane = s.lane;
        double lowered = 0.0;
        uint64_t key = kNoBid;
        if (lane >= 0 && s.second < lists_.kInfinity) {
            const double v = w.v[w.listed[lists_.entry(i, lane)]];
            const uint64_t rounded = round_up(v - (s.second - s.first));
            lowered = value_of(rounded);
            if (lowered < v && lowered > -lists_.kInfinity) {
                key = rounded | static_cast<uint32_t>(i);
            } else {
                lane = tight_and_free(g, i, s.first);
                if (lane >= 0) key = kStays | static_cast<uint32_t>(i);
            }
        }
        g.one([&] {
            if (s.lane < 0 && s.first < lists_.kInfinity) {
                w.waiting[Team::atomic_add(&w.counts[kWaiting], 1)] = i;
                w.want[i] = -1;
                return;
            }
            if (key == kNoBid) {
                w.want[i] = -1;
                return;
            }
            const int32_t j = w.listed[lists_.entry(i, lane)];
            w.want[i] = j, w.bid[i] = key, w.scanned[i] = w.costs[lists_.entry(i, lane)];
            Team::atomic_min(&w.label[j], key);
        });
    }

    // A value with zeros in its last bits, not below the given one, as an integer of the same order with room for a
    // row's number; and the value again. Integers stay integers.
    PYALIGN_PART uint64_t round_up(double x) const {
        const uint64_t key = ordered(x);
        return (x < 0.0 ? key : key + mask_) & ~mask_;
    }
    PYALIGN_PART double value_of(uint64_t key) const { return from_ordered(key >> 63 ? key & ~mask_ : key | mask_); }

    // Above every v that falls: a bid that leaves v as it is loses against all others.
    static constexpr uint64_t kStays = 0xfff8000000000000;

    // A listed column that is as cheap as the cheapest and has no row; which one depends on the row.
    template <typename Group>
    PYALIGN_PART int tight_and_free(const Group& g, int32_t i, double value) const {
        Lanes<bool> here;
        const int32_t size = w.size[i];
        g.lanes([&](int lane) {
            here[lane] = false;
            if (lane >= size) return;
            const int32_t j = w.listed[lists_.entry(i, lane)];
            here[lane] = w.costs[lists_.entry(i, lane)] - w.v[j] == value && w.row_of[j] < 0;
        });
        const uint32_t found = g.ballot(here), turn = static_cast<uint32_t>(i + round_) % kLanes;
        const uint32_t later = found >> turn << turn;
        return lists_.lowest(later ? later : found);
    }

    PYALIGN_PART void settle(int32_t i) {
        const int32_t j = w.want[i];
        if (j < 0) return;
        int32_t back = i;
        if (Team::now(&w.label[j]) == w.bid[i]) {
            back = w.row_of[j];
            if (back >= 0) w.column_of[back] = -1;
            if (w.bid[i] < kStays) w.v[j] = value_of(w.bid[i]);
            w.row_of[j] = i, w.column_of[i] = j, w.own[i] = w.scanned[i];
            Team::put(&w.label[j], kNoBid);  // no bid: rows that look now have lost either way
        }
        if (back >= 0) push(back);
    }

    // Rows whose list is used up wait until they are as many as those that bid, then bid again. Gives how many.
    PYALIGN_PART int32_t look_again(int32_t active, int32_t waiting) {
        team_.groups(waiting, [&](const auto& g, int32_t k) {
            const int32_t i = w.waiting[k];
            lists_.choose(g, i);
            g.one([&] { queue(round_)[active + k] = i; });
        });
        team_.sync();
        team_.first([&] { w.counts[kWaiting] = 0; });
        team_.sync();
        return waiting;
    }

    Team& team_;
    RowLists<Team, Cost>& lists_;
    const ParallelProblem& p;
    const ParallelWork& w;
    int32_t& round_;
    uint64_t mask_ = 0;
};

}  // namespace pyalign
