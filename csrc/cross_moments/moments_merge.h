// After the products: are the sums sound, and the pairwise update of the record (Chan et al. 1983, eq. 2.1).
#pragma once

#include "cross_moments/cross_moments.h"
#include "cross_moments/moments_work.h"

namespace pyalign {

enum MomentStatus { kNotFinite = 0, kFarOff = 1 };  // places in the status

// One thread per unit, of x and then of y: adds the slices up and judges them.
struct JudgeBody {
    static constexpr int kThreads = 128;
    MomentUnits units[2];
    int64_t count[2], padded[2], slices, tile;
    const double* record_mean[2];
    const double* record_count;
    const double* kept;  // [slice]
    double* totals;      // samples of the call; of the record before
    int32_t* status;
    bool in_double, exact;

    static constexpr size_t shared_bytes() { return 0; }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int x, int, int) const {
        block.each([&](int t) {
            const int64_t k = static_cast<int64_t>(x) * kThreads + t;
            const int which = k < count[0] ? 0 : 1;
            const int64_t unit = which ? k - count[0] : k;
            if (unit >= count[which]) return;
            double samples = 0.0;
            for (int64_t s = 0; s < slices; ++s) samples += kept[s];
            if (k == 0) totals[0] = samples, totals[1] = *record_count;
            if (samples > 0.0) {
                judge(which, unit, samples);
            } else {
                const MomentUnits& of = units[which];
                of.total[unit] = of.spread[unit] = of.delta[unit] = 0.0;
            }
        });
    }

  private:
    PYALIGN_BOTH void judge(int which, int64_t unit, double samples) const {
        const MomentUnits& of = units[which];
        double sum = 0.0, square = 0.0;
        for (int64_t s = 0; s < slices; ++s) {
            sum += of.sum[s * padded[which] + unit];
            square += of.square[s * padded[which] + unit];
        }
        const double scale = of.scale[unit], inner = in_double ? scale : 1.0, outer = in_double ? 1.0 : scale;
        const double centred = square - sum * inner * (sum * inner) / samples;
        of.total[unit] = sum;
        of.spread[unit] = (centred > 0.0 ? centred : 0.0) / inner / inner;
        of.delta[unit] = of.shift[unit] + sum / samples - record_mean[which][unit];
        if (!(fabs(sum) <= 1.7e308 && square <= 1.7e308)) status[kNotFinite] = 1;
        if (!exact && far_off(of, unit, samples, sum * inner, square, centred, outer)) status[kFarOff] = 1;
    }

    // Whether the few samples looked at have misled: shift or scale are not what they should be.
    PYALIGN_BOTH bool far_off(const MomentUnits& of, int64_t unit, double samples, double sum, double square,
                              double centred, double outer) const {
        if (square == 0.0) return false;
        if (2.0 * sum * sum > samples * square) return true;
        const double size = square / samples * outer * outer;
        if (in_double) return size < 1e-200 || size > 1e200;
        if (size < 0x1p-4 && of.scale[unit] < 0x1p126) return true;
        if (of.block_shifts[unit / tile]) return false;
        const double mean = of.shift[unit] + sum / samples, variance = centred / samples;
        return !(mean * mean <= 1.5 * variance && variance > 0x1p-82 && variance < 0x1p82);
    }
};

// Adds the slices of a launch to the sums of the earlier ones, where there are too many slices for one.
template <typename Sum>
struct FoldBody {
    static constexpr int kThreads = 256;
    const Sum* partial;
    double* sum;
    int64_t entries, slices;
    bool begins;

    static constexpr size_t shared_bytes() { return 0; }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int x, int, int) const {
        block.each([&](int t) {
            const int64_t k = static_cast<int64_t>(x) * kThreads + t;
            if (k >= entries) return;
            double total = begins ? 0.0 : sum[k];
            for (int64_t s = 0; s < slices; ++s) total += static_cast<double>(partial[s * entries + k]);
            sum[k] = total;
        });
    }
};

// Merges the products of one pair of streams into the record. A block has kRows rows of a tile.
template <typename Sum, int kTile>
struct CommitBody {
    static constexpr int kThreads = 256;
    static constexpr int kRows = 8;
    const Sum* partial;
    const double* sum;  // of earlier launches; null where there were none
    int64_t slices;
    MomentUnits units_a, units_b;
    int64_t count_a, count_b, columns;  // units; tiles beside each other
    const double* totals;
    double* record;
    bool upper;

    static constexpr size_t shared_bytes() { return 0; }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int tile_j, int tile_i, int z) const {
        if (upper && tile_j < tile_i) return;
        const int64_t tiles = (count_a + kTile - 1) / kTile * columns;
        const int64_t tile = (tile_i * columns + tile_j) * kTile * kTile;
        const double samples = totals[0], before = totals[1], all = samples + before;
        const double weight = all > 0.0 ? before * (samples / all) : 0.0;
        const bool shifted = sizeof(Sum) == 8 || units_a.block_shifts[tile_i] || units_b.block_shifts[tile_j];
        block.each([&](int t) {
            for (int e = t; e < kRows * kTile; e += kThreads) {
                const int row = z * kRows + e / kTile, column = e % kTile;
                const int64_t i = static_cast<int64_t>(tile_i) * kTile + row;
                const int64_t j = static_cast<int64_t>(tile_j) * kTile + column;
                if (i >= count_a || j >= count_b || (upper && j < i)) continue;
                const int64_t at = tile + row * kTile + column;
                double total = sum ? sum[at] : 0.0;
                for (int64_t s = 0; s < slices; ++s) {
                    total += static_cast<double>(partial[s * tiles * kTile * kTile + at]);
                }
                double more = samples > 0.0 ? centred(total, i, j, samples, shifted) : 0.0;
                more += weight * units_a.delta[i] * units_b.delta[j];
                double* const entry = record + i * count_b + j;
                const double value = before > 0.0 ? *entry + more : more;  // without samples it may hold anything
                *entry = value;
                if (upper) record[j * count_b + i] = value;
            }
        });
    }

  private:
    // The sum of products around the means. Raw products are around zero, and so are the sums they need.
    PYALIGN_BOTH double centred(double total, int64_t i, int64_t j, double samples, bool shifted) const {
        double sum_a = units_a.total[i], sum_b = units_b.total[j];
        if (shifted)
            return (total - sum_a * units_a.scale[i] * (sum_b * units_b.scale[j]) / samples) / units_a.scale[i] /
                   units_b.scale[j];
        sum_a += samples * units_a.shift[i];
        sum_b += samples * units_b.shift[j];
        return total - sum_a * sum_b / samples;
    }
};

// Last: means, squares of the units where only those are wanted, and the count.
struct AdvanceBody {
    static constexpr int kThreads = 128;
    MomentUnits units[2];
    int64_t count[2];
    const double* totals;
    double* record_count;
    double *mean[2], *square[2];
    bool full;

    static constexpr size_t shared_bytes() { return 0; }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int x, int, int) const {
        const double samples = totals[0], before = totals[1], all = samples + before;
        block.each([&](int t) {
            const int64_t k = static_cast<int64_t>(x) * kThreads + t;
            if (k == 0) *record_count = all;
            const int which = k < count[0] ? 0 : 1;
            const int64_t unit = which ? k - count[0] : k;
            if (unit >= count[which] || !(samples > 0.0)) return;
            const double delta = units[which].delta[unit];
            mean[which][unit] += delta * (samples / all);
            if (!full) square[which][unit] += units[which].spread[unit] + delta * delta * (before * (samples / all));
        });
    }
};

}  // namespace pyalign
