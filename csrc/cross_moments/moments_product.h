// The products of 128 x 128 pairs of units over one slice of samples, on tensor cores.
//
// Values are centred and scaled while they are brought to shared memory, as one 16-bit number each, or as two whose sum
// has all bits of a float32: x y = (h + l)(h' + l') without l l', which lies below 2^-22. Raw 16-bit values are
// multiplied as they are where that loses nothing. A tensor core cuts off what it adds, so each tile's
// products begin at zero; tiles are added in float32, every kFlush of them to a second sum, slices in float64.
#pragma once

#include "cross_moments/moments_tile.h"

namespace pyalign {

constexpr int kPairTile = 128;  // units of a block's tile

// kDepth samples at a time. kWide: entries of any type, shifted; otherwise raw 16-bit ones. kUnitsFirst: units, not
// samples, lie side by side in memory.
template <Narrow kKind, int kPieces, int kDepth, bool kWide, bool kUnitsFirst>
struct ProductBody {
    static constexpr int kThreads = 256;
    static constexpr int kFlush = 512 / kDepth;
    static constexpr int kGroups = kPairTile * kDepth / 4 / kThreads;
    static constexpr int kWords = kWide ? 4 : 2;
    static constexpr int kPieceBytes = kPairTile * kDepth * 2;
    static constexpr int kBatch = kThreads / kDepth;  // tiles that a table holds

    ProductWork<float> work;
    bool flushes;  // whether there is room for the second sums

    struct Shared {
        alignas(16) char stage[2][2][kPieces][kPieceBytes];  // [of tile][a or b]
        SampleTable<kThreads> table;
        float shift[2][kPairTile], scale[2][kPairTile];
    };
    struct Raw {
        uint32_t words[2][kGroups][kWords];
    };
    struct Fragments {
        uint32_t b[kPieces][8], a[kPieces][4];
    };
    struct Sums {
        float c[4][4][4];
    };
    struct UnitSums {
        double sum, square, count;
    };

    PYALIGN_BOTH static constexpr size_t shared_bytes(bool flushes) {
        return (sizeof(Shared) + 127) / 128 * 128 + (flushes ? sizeof(Sums) * kThreads : 0);
    }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int j, int i, int z) const {
        if ((work.upper && j < i) || !mine(i, j)) return;
        const int64_t slice = work.slices.first + z, begin = slice * work.slices.chunk;
        const int64_t end =
            begin + work.slices.chunk < work.samples.count ? begin + work.slices.chunk : work.samples.count;
        const int64_t tiles = (end - begin + kDepth - 1) / kDepth;
        const int64_t columns = (work.b.units + kPairTile - 1) / kPairTile;
        const int64_t rows = (work.a.units + kPairTile - 1) / kPairTile;
        // Of the blocks that share units, another one sums them in each slice.
        const bool counts[2] = {work.counts && j == slice % columns, work.counts && i == slice % rows};
        auto& s = *reinterpret_cast<Shared*>(block.shared());
        float* second = reinterpret_cast<float*>(block.shared() + shared_bytes(false));
        typename Block::template Each<Raw> raw;
        typename Block::template Each<Sums> fresh, total;
        typename Block::template Each<Fragments> fragments;
        typename Block::template Each<UnitSums> of_unit;
        block.each([&](int t) {
            begin_thread(s, second, total[t], of_unit[t], i, j, t);
            s.table.fill(work.samples, begin, end, 0, t);
        });
        block.sync();
        block.each([&](int t) { load(s, i, j, 0, t, raw[t]); });
        block.each([&](int t) { store(s, 0, t, raw[t]); });
        block.sync();
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const bool more = tile + 1 < tiles;
            if (more) block.each([&](int t) { load(s, i, j, tile + 1, t, raw[t]); });
            multiply(block, s, static_cast<int>(tile & 1), fragments, fresh);
            const bool flush = flushes && (tile + 1) % kFlush == 0 && more;
            block.each([&](int t) {
                add(fresh[t], total[t]);
                if (flush) add_second(total[t], second, t);
                sum_units(s, counts, tile, t, of_unit[t]);
                if (more) store(s, tile + 1, t, raw[t]);
                if ((tile + 2) % kBatch == 0 && tile + 2 < tiles) {
                    s.table.fill(work.samples, begin, end, (tile + 2) / kBatch, t);
                }
            });
            block.sync();
        }
        float* out = work.partial + ((z * rows + i) * columns + j) * kPairTile * kPairTile;
        block.each([&](int t) {
            finish(total[t], second, out, t);
            note_units(s, counts, slice, i, j, t, of_unit[t]);
        });
    }

  private:
    // Of raw and shifted products each pair of blocks has one.
    PYALIGN_BOTH bool mine(int i, int j) const {
        const bool shifted = work.units_a.block_shifts[i] != 0 || work.units_b.block_shifts[j] != 0;
        return shifted == kWide;
    }

    PYALIGN_BOTH void begin_thread(Shared& s, float* second, Sums& total, UnitSums& of_unit, int i, int j,
                                   int t) const {
        const bool of_b = t >= kPairTile;
        const MomentUnits& units = of_b ? work.units_b : work.units_a;
        const int64_t unit = static_cast<int64_t>(of_b ? j : i) * kPairTile + t % kPairTile;
        s.shift[of_b][t % kPairTile] = kWide ? static_cast<float>(units.shift[unit]) : 0.0f;
        s.scale[of_b][t % kPairTile] = kWide ? static_cast<float>(units.scale[unit]) : 1.0f;
        of_unit = {0.0, 0.0, 0.0};
        PYALIGN_UNROLLED
        for (int k = 0; k < 64; ++k) {
            (&total.c[0][0][0])[k] = 0.0f;
            if (flushes) second[k * kThreads + t] = 0.0f;
        }
    }

    // Where group g of a thread lies in a tile: unit and sample of its first entry.
    PYALIGN_BOTH static void place(int g, int t, int& unit, int& sample) {
        if (kUnitsFirst) {
            unit = t % 32 * 4, sample = t / 32 + g * (kThreads / 32);
        } else {
            constexpr int across = kDepth / 4;
            unit = t / across + g * (kThreads / across), sample = t % across * 4;
        }
    }

    // Byte of an entry (the first of eight) in a tile: 16-byte pieces change places so that neither stores nor
    // ldmatrix meet the same banks.
    PYALIGN_BOTH static int byte_of(int unit, int sample) {
        if (kUnitsFirst) return sample * kPairTile * 2 + ((unit / 8 ^ (sample & 7)) * 16) + unit % 8 * 2;
        const int turn = kDepth == 32 ? unit >> 1 & 3 : unit & 7;
        return unit * kDepth * 2 + ((sample / 8 ^ turn) * 16) + sample % 8 * 2;
    }

    PYALIGN_BOTH void load(const Shared& s, int i, int j, int64_t tile, int t, Raw& raw) const {
        load_stream(s, work.a, work.which_a, static_cast<int64_t>(i) * kPairTile, tile, t, raw.words[0]);
        load_stream(s, work.b, work.which_b, static_cast<int64_t>(j) * kPairTile, tile, t, raw.words[1]);
    }

    PYALIGN_BOTH void load_stream(const Shared& s, const MomentStream& from, int which, int64_t first_unit,
                                  int64_t tile, int t, uint32_t (&words)[kGroups][kWords]) const {
        const int half = static_cast<int>(tile / kBatch & 1), in_table = static_cast<int>(tile % kBatch) * kDepth;
        const int64_t* offsets = s.table.offset[half][which] + in_table;
        const uint8_t* flags = s.table.flags[half] + in_table;
        // A run of samples is read as a whole also where a mask leaves out some of them.
        const uint8_t needed =
            from.vectors && !kUnitsFirst ? SampleTable<kThreads>::kExists : SampleTable<kThreads>::kKept;
        PYALIGN_UNROLLED
        for (int g = 0; g < kGroups; ++g) {
            int unit, sample;
            place(g, t, unit, sample);
            int64_t offset[4];
            bool loads[4];
            PYALIGN_UNROLLED
            for (int e = 0; e < 4; ++e) {
                const int64_t u = first_unit + unit + (kUnitsFirst ? e : 0);
                const int k = sample + (kUnitsFirst ? 0 : e);
                loads[e] = u < from.units && (flags[k] & needed) != 0;
                offset[e] = offsets[k] + u * from.unit_stride;
            }
            load_four(from, offset, loads, from.vectors, words[g]);
        }
    }

    PYALIGN_BOTH void store(Shared& s, int64_t tile, int t, const Raw& raw) const {
        const int stage = static_cast<int>(tile & 1);
        store_stream(s, 0, work.a.dtype, stage, tile, t, raw.words[0]);
        store_stream(s, 1, work.b.dtype, stage, tile, t, raw.words[1]);
    }

    PYALIGN_BOTH void store_stream(Shared& s, int of, DType dtype, int stage, int64_t tile, int t,
                                   const uint32_t (&words)[kGroups][kWords]) const {
        const int half = static_cast<int>(tile / kBatch & 1), in_table = static_cast<int>(tile % kBatch) * kDepth;
        const uint8_t* flags = s.table.flags[half] + in_table;
        PYALIGN_UNROLLED
        for (int g = 0; g < kGroups; ++g) {
            int unit, sample;
            place(g, t, unit, sample);
            uint32_t pieces[2][2] = {};
            PYALIGN_UNROLLED
            for (int e = 0; e < 4; ++e) {
                const bool kept = (flags[sample + (kUnitsFirst ? 0 : e)] & SampleTable<kThreads>::kKept) != 0;
                uint32_t high, low = 0;
                if (!kWide) {
                    high = kept ? words[g][e / 2] >> (16 * (e & 1)) & 0xffff : 0;
                } else {
                    const int u = unit + (kUnitsFirst ? e : 0);
                    const float value = (entry_of(dtype, words[g], e) - s.shift[of][u]) * s.scale[of][u];
                    high = kept ? narrowed(kKind, value) : 0;
                    if (kPieces == 2 && kept) {
                        low = narrowed(kKind, value - widen(kKind, static_cast<uint16_t>(high)));
                    }
                }
                pieces[0][e / 2] |= high << (16 * (e & 1));
                pieces[1][e / 2] |= low << (16 * (e & 1));
            }
            const int byte = byte_of(unit, sample);
            PYALIGN_UNROLLED
            for (int p = 0; p < kPieces; ++p) {
                *aligned<TwoWords>(s.stage[stage][of][p] + byte) = TwoWords{{pieces[p][0], pieces[p][1]}};
            }
        }
    }

    // Eight warps, two below each other and four beside: each has 64 x 32 pairs.
    template <typename Block, typename EachFragments, typename EachSums>
    PYALIGN_BOTH static void multiply(Block& block, const Shared& s, int stage, EachFragments& fragments,
                                      EachSums& fresh) {
        block.each([&](int t) {
            PYALIGN_UNROLLED
            for (int k = 0; k < 64; ++k) (&fresh[t].c[0][0][0])[k] = 0.0f;
        });
        PYALIGN_UNROLLED
        for (int k = 0; k < kDepth; k += 16) {
            PYALIGN_UNROLLED
            for (int p = 0; p < kPieces; ++p) {
                PYALIGN_UNROLLED
                for (int pair = 0; pair < 2; ++pair) {
                    block.template load_matrices<kUnitsFirst>(
                        [&](int t) {
                            const int row = t % 8, q = t / 8 % 4, warp = t / 32;
                            const int unit = warp % 4 * 32 + pair * 16 + (q >> 1) * 8, sample = k + (q & 1) * 8;
                            return s.stage[stage][1][p] +
                                   (kUnitsFirst ? byte_of(unit, sample + row) : byte_of(unit + row, sample));
                        },
                        [&](int t) { return fragments[t].b[p] + pair * 4; });
                }
            }
            PYALIGN_UNROLLED
            for (int m = 0; m < 4; ++m) {
                PYALIGN_UNROLLED
                for (int p = 0; p < kPieces; ++p) {
                    block.template load_matrices<kUnitsFirst>(
                        [&](int t) {
                            const int row = t % 8, q = t / 8 % 4, warp = t / 32;
                            const int unit = warp / 4 * 64 + m * 16 + (q & 1) * 8, sample = k + (q >> 1) * 8;
                            return s.stage[stage][0][p] +
                                   (kUnitsFirst ? byte_of(unit, sample + row) : byte_of(unit + row, sample));
                        },
                        [&](int t) { return fragments[t].a[p]; });
                }
                // The small products first.
                PYALIGN_UNROLLED
                for (int way = kPieces == 2 ? 0 : 2; way < 3; ++way) {
                    PYALIGN_UNROLLED
                    for (int n = 0; n < 4; ++n) {
                        block.template multiply_add<kKind>(
                            [&](int t) { return fresh[t].c[m][n]; },
                            [&](int t) { return fragments[t].a[kPieces == 2 && way == 0 ? kPieces - 1 : 0]; },
                            [&](int t) { return fragments[t].b[kPieces == 2 && way == 1 ? kPieces - 1 : 0] + n * 2; });
                    }
                }
            }
        }
    }

    PYALIGN_BOTH static void add(const Sums& fresh, Sums& total) {
        PYALIGN_UNROLLED
        for (int k = 0; k < 64; ++k) (&total.c[0][0][0])[k] += (&fresh.c[0][0][0])[k];
    }

    PYALIGN_BOTH static void add_second(Sums& total, float* second, int t) {
        PYALIGN_UNROLLED
        for (int k = 0; k < 64; ++k) {
            second[k * kThreads + t] += (&total.c[0][0][0])[k];
            (&total.c[0][0][0])[k] = 0.0f;
        }
    }

    // Threads 0 to 127 sum the units of a, the others those of b, from what the products read too.
    PYALIGN_BOTH static void sum_units(const Shared& s, const bool (&counts)[2], int64_t tile, int t, UnitSums& sums) {
        const int half = static_cast<int>(tile / kBatch & 1), in_table = static_cast<int>(tile % kBatch) * kDepth;
        const uint8_t* flags = s.table.flags[half] + in_table;
        const int of = t / kPairTile, unit = t % kPairTile, stage = static_cast<int>(tile & 1);
        int kept = 0;
        if ((of ? counts[1] : counts[0]) || t == 0) {
            for (int k = 0; k < kDepth; ++k) kept += (flags[k] & SampleTable<kThreads>::kKept) != 0;
        }
        sums.count += kept;
        if (!(of ? counts[1] : counts[0])) return;
        for (int k = 0; k < kDepth; k += 8) {
            uint16_t entry[kPieces][8];
            PYALIGN_UNROLLED
            for (int p = 0; p < kPieces; ++p) {
                const char* from = s.stage[stage][of][p];
                if (kUnitsFirst) {
                    PYALIGN_UNROLLED
                    for (int e = 0; e < 8; ++e) {
                        entry[p][e] = *reinterpret_cast<const uint16_t*>(from + byte_of(unit, k + e));
                    }
                } else {
                    const FourWords four = *aligned<FourWords>(from + byte_of(unit, k));
                    PYALIGN_UNROLLED
                    for (int e = 0; e < 8; ++e) {
                        entry[p][e] = static_cast<uint16_t>(four.word[e / 2] >> (16 * (e & 1)));
                    }
                }
            }
            float value[8], square[8];
            PYALIGN_UNROLLED
            for (int e = 0; e < 8; ++e) {
                value[e] = widen(kKind, entry[0][e]);
                if (kPieces == 2) value[e] += widen(kKind, entry[kPieces - 1][e]);
                square[e] = value[e] * value[e];
            }
            // Eight in pairs, the rest in double: the squares are all that the record has of a unit's spread.
            sums.sum += static_cast<double>(sum_of_eight(value));
            sums.square += static_cast<double>(sum_of_eight(square));
        }
    }

    PYALIGN_BOTH static float sum_of_eight(const float (&v)[8]) {
        return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }

    PYALIGN_BOTH void finish(const Sums& total, const float* second, float* out, int t) const {
        const int warp = t / 32, lane = t % 32;
        PYALIGN_UNROLLED
        for (int m = 0; m < 4; ++m) {
            PYALIGN_UNROLLED
            for (int n = 0; n < 4; ++n) {
                PYALIGN_UNROLLED
                for (int e = 0; e < 4; ++e) {
                    const int row = warp / 4 * 64 + m * 16 + lane / 4 + 8 * (e >> 1);
                    const int column = warp % 4 * 32 + n * 8 + 2 * (lane % 4) + (e & 1);
                    float value = total.c[m][n][e];
                    if (flushes) value += second[((m * 4 + n) * 4 + e) * kThreads + t];
                    out[row * kPairTile + column] = value;
                }
            }
        }
    }

    // Sums go out unscaled and around the shift, whatever the products were of.
    PYALIGN_BOTH void note_units(const Shared& s, const bool (&counts)[2], int64_t slice, int i, int j, int t,
                                 const UnitSums& sums) const {
        if (i == 0 && j == 0 && t == 0) work.count[slice] = sums.count;
        const int of = t / kPairTile;
        if (!(of ? counts[1] : counts[0])) return;
        const MomentUnits& units = of ? work.units_b : work.units_a;
        const int64_t unit = static_cast<int64_t>(of ? j : i) * kPairTile + t % kPairTile;
        const int64_t at = slice * (of ? work.padded_b : work.padded_a) + unit;
        const double back =
            s.scale[of][t % kPairTile] > 0.0f ? 1.0 / static_cast<double>(s.scale[of][t % kPairTile]) : 0.0;
        const double sum = sums.sum * back, square = sums.square * back * back;
        const double apart = kWide ? 0.0 : units.shift[unit];
        units.sum[at] = sum - sums.count * apart;
        units.square[at] = square - 2.0 * apart * sum + sums.count * apart * apart;
    }
};

}  // namespace pyalign
