// The products of 64 x 64 pairs of units over one slice of samples, in float64: values are centred and scaled while
// they are brought to shared memory, and multiplied by the double-precision matrix instruction.
#pragma once

#include "cross_moments/moments_look.h"
#include "cross_moments/moments_tile.h"

namespace pyalign {

constexpr int kDoubleTile = 64;

struct DoubleProductBody : ProductWork<double> {
    static constexpr int kThreads = 128;
    static constexpr int kDepth = 16;
    static constexpr int kEntries = kDoubleTile * kDepth / kThreads;
    static constexpr int kRow = kDepth + 4;  // rows four doubles apart in the banks
    static constexpr int kBatch = kThreads / kDepth;

    struct Shared {
        double stage[2][2][kDoubleTile * kRow];
        double shift[2][kDoubleTile], scale[2][kDoubleTile];
        SampleTable<kThreads> table;
    };
    struct Raw {
        double value[2][kEntries];
    };
    struct Fragments {
        double a, b[4];
    };
    struct Sums {
        double c[4][4][2];
    };
    struct UnitSums {
        double sum, square, count;
    };

    static constexpr size_t shared_bytes() { return sizeof(Shared); }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int j, int i, int z) const {
        if (upper && j < i) return;
        const int64_t slice = slices.first + z, begin = slice * slices.chunk;
        const int64_t end = begin + slices.chunk < samples.count ? begin + slices.chunk : samples.count;
        const int64_t tiles = (end - begin + kDepth - 1) / kDepth;
        const int64_t columns = (b.units + kDoubleTile - 1) / kDoubleTile;
        const int64_t rows = (a.units + kDoubleTile - 1) / kDoubleTile;
        const bool wanted[2] = {counts && j == slice % columns, counts && i == slice % rows};
        auto& s = *reinterpret_cast<Shared*>(block.shared());
        typename Block::template Each<Raw> raw;
        typename Block::template Each<Sums> total;
        typename Block::template Each<Fragments> fragments;
        typename Block::template Each<UnitSums> of_unit;
        block.each([&](int t) {
            const int of = t / kDoubleTile;
            const MomentUnits& units = of ? units_b : units_a;
            const int64_t unit = static_cast<int64_t>(of ? j : i) * kDoubleTile + t % kDoubleTile;
            s.shift[of][t % kDoubleTile] = units.shift[unit];
            s.scale[of][t % kDoubleTile] = units.scale[unit];
            of_unit[t] = {0.0, 0.0, 0.0};
            PYALIGN_UNROLLED
            for (int k = 0; k < 32; ++k) (&total[t].c[0][0][0])[k] = 0.0;
            s.table.fill(samples, begin, end, 0, t);
        });
        block.sync();
        block.each([&](int t) {
            load(s, i, j, 0, t, raw[t]);
            store(s, 0, t, raw[t]);
        });
        block.sync();
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const bool more = tile + 1 < tiles;
            if (more) block.each([&](int t) { load(s, i, j, tile + 1, t, raw[t]); });
            multiply(block, s, static_cast<int>(tile & 1), fragments, total);
            block.each([&](int t) {
                sum_units(s, wanted, tile, t, of_unit[t]);
                if (more) store(s, tile + 1, t, raw[t]);
                if ((tile + 2) % kBatch == 0 && tile + 2 < tiles) {
                    s.table.fill(samples, begin, end, (tile + 2) / kBatch, t);
                }
            });
            block.sync();
        }
        double* out = partial + ((z * rows + i) * columns + j) * kDoubleTile * kDoubleTile;
        block.each([&](int t) {
            finish(total[t], out, t);
            note_units(s, wanted, slice, i, j, t, of_unit[t]);
        });
    }

  private:
    // Neighbouring threads take entries that lie side by side in memory.
    PYALIGN_BOTH static void place(const MomentStream& from, int g, int t, int& unit, int& sample) {
        if (from.unit_stride == 1) {
            unit = t % kDoubleTile, sample = t / kDoubleTile + g * (kThreads / kDoubleTile);
        } else {
            unit = t / kDepth + g * (kThreads / kDepth), sample = t % kDepth;
        }
    }

    PYALIGN_BOTH void load(const Shared& s, int i, int j, int64_t tile, int t, Raw& raw) const {
        load_stream(s, a, which_a, 0, static_cast<int64_t>(i) * kDoubleTile, tile, t, raw.value[0]);
        load_stream(s, b, which_b, 1, static_cast<int64_t>(j) * kDoubleTile, tile, t, raw.value[1]);
    }

    PYALIGN_BOTH static void load_stream(const Shared& s, const MomentStream& from, int which, int of, int64_t first,
                                         int64_t tile, int t, double (&value)[kEntries]) {
        const int half = static_cast<int>(tile / kBatch & 1), in_table = static_cast<int>(tile % kBatch) * kDepth;
        PYALIGN_UNROLLED
        for (int g = 0; g < kEntries; ++g) {
            int unit, sample;
            place(from, g, t, unit, sample);
            const bool kept = (s.table.flags[half][in_table + sample] & SampleTable<kThreads>::kKept) != 0;
            value[g] = 0.0;
            if (kept && first + unit < from.units) {
                const double x =
                    value_at(from, s.table.offset[half][which][in_table + sample] + (first + unit) * from.unit_stride);
                value[g] = (x - s.shift[of][unit]) * s.scale[of][unit];
            }
        }
    }

    PYALIGN_BOTH void store(Shared& s, int64_t tile, int t, const Raw& raw) const {
        const int stage = static_cast<int>(tile & 1);
        PYALIGN_UNROLLED
        for (int of = 0; of < 2; ++of) {
            PYALIGN_UNROLLED
            for (int g = 0; g < kEntries; ++g) {
                int unit, sample;
                place(of ? b : a, g, t, unit, sample);
                s.stage[stage][of][unit * kRow + sample] = raw.value[of][g];
            }
        }
    }

    // Four warps, two by two: each has 32 x 32 pairs.
    template <typename Block, typename EachFragments, typename EachSums>
    PYALIGN_BOTH static void multiply(Block& block, const Shared& s, int stage, EachFragments& fragments,
                                      EachSums& total) {
        PYALIGN_UNROLLED
        for (int k = 0; k < kDepth; k += 4) {
            block.each([&](int t) {
                PYALIGN_UNROLLED
                for (int n = 0; n < 4; ++n) {
                    const int unit = t / 32 % 2 * 32 + n * 8 + t % 32 / 4;
                    fragments[t].b[n] = s.stage[stage][1][unit * kRow + k + t % 4];
                }
            });
            PYALIGN_UNROLLED
            for (int m = 0; m < 4; ++m) {
                block.each([&](int t) {
                    const int unit = t / 64 * 32 + m * 8 + t % 32 / 4;
                    fragments[t].a = s.stage[stage][0][unit * kRow + k + t % 4];
                });
                PYALIGN_UNROLLED
                for (int n = 0; n < 4; ++n) {
                    block.multiply_add_double([&](int t) { return total[t].c[m][n]; },
                                              [&](int t) { return fragments[t].a; },
                                              [&](int t) { return fragments[t].b[n]; });
                }
            }
        }
    }

    PYALIGN_BOTH static void sum_units(const Shared& s, const bool (&wanted)[2], int64_t tile, int t, UnitSums& sums) {
        const int half = static_cast<int>(tile / kBatch & 1), in_table = static_cast<int>(tile % kBatch) * kDepth;
        const int of = t / kDoubleTile;
        if (!(of ? wanted[1] : wanted[0]) && t != 0) return;
        for (int k = 0; k < kDepth; ++k) {
            sums.count += (s.table.flags[half][in_table + k] & SampleTable<kThreads>::kKept) != 0;
            const double value = s.stage[tile & 1][of][t % kDoubleTile * kRow + k];
            sums.sum += value;
            sums.square += value * value;
        }
    }

    PYALIGN_BOTH static void finish(const Sums& total, double* out, int t) {
        const int warp = t / 32, lane = t % 32;
        PYALIGN_UNROLLED
        for (int m = 0; m < 4; ++m) {
            PYALIGN_UNROLLED
            for (int n = 0; n < 4; ++n) {
                PYALIGN_UNROLLED
                for (int e = 0; e < 2; ++e) {
                    const int row = warp / 2 * 32 + m * 8 + lane / 4;
                    out[row * kDoubleTile + warp % 2 * 32 + n * 8 + 2 * (lane % 4) + e] = total.c[m][n][e];
                }
            }
        }
    }

    PYALIGN_BOTH void note_units(const Shared& s, const bool (&wanted)[2], int64_t slice, int i, int j, int t,
                                 const UnitSums& sums) const {
        if (i == 0 && j == 0 && t == 0) count[slice] = sums.count;
        const int of = t / kDoubleTile;
        if (!(of ? wanted[1] : wanted[0])) return;
        const MomentUnits& units = of ? units_b : units_a;
        const int64_t at =
            slice * (of ? padded_b : padded_a) + static_cast<int64_t>(of ? j : i) * kDoubleTile + t % kDoubleTile;
        const double scale = s.scale[of][t % kDoubleTile], back = scale > 0.0 ? 1.0 / scale : 0.0;
        units.sum[at] = sums.sum * back;
        units.square[at] = sums.square;  // stays scaled, for the square of a double may be out of range
    }
};

}  // namespace pyalign
