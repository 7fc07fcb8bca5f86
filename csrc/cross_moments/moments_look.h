// Before the products: where each unit's values lie, from a few of its samples. A unit whose samples are all equal is
// looked at in full, since its scale could not be known. With `exact` every unit is.
#pragma once

#include "core/narrow.h"
#include "cross_moments/moments_work.h"

namespace pyalign {

PYALIGN_BOTH double value_at(const MomentStream& stream, int64_t offset) {
    switch (stream.dtype) {
        case DType::f64:
            return static_cast<const double*>(stream.data)[offset];
        case DType::f16:
            return widen_f16(static_cast<const uint16_t*>(stream.data)[offset]);
        case DType::bf16:
            return widen_bf16(static_cast<const uint16_t*>(stream.data)[offset]);
        default:
            return static_cast<const float*>(stream.data)[offset];
    }
}

// One block per unit: first those of x, then those of y.
struct LookBody {
    static constexpr int kThreads = 128;
    static constexpr int64_t kFew = 256;  // samples looked at
    struct Seen {
        double count, sum, square, most;
    };

    MomentStream stream[2];
    MomentUnits units[2];
    MomentSamples samples;
    int32_t* status;
    bool exact, in_double, raw;  // raw: the products may be of raw values, and `unsafe` matters

    static constexpr size_t shared_bytes() { return (kThreads + 2) * sizeof(Seen); }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int x, int, int) const {
        const int which = x < stream[0].units ? 0 : 1;
        const int64_t unit = which ? x - stream[0].units : x;
        Seen* all = reinterpret_cast<Seen*>(block.shared());
        Seen *first = all + kThreads, *second = first + 1;
        block.each([&](int t) {
            if (x == 0 && t == 0) status[0] = status[1] = 0;
        });
        bool whole = exact || samples.count <= kFew;
        for (;;) {
            see(block, which, unit, whole, nullptr, all, first);
            see(block, which, unit, whole, first, all, second);
            if (whole || second->most > 0.0) break;
            whole = true;
            block.sync();
        }
        block.each([&](int t) {
            if (t == 0) note(which, unit, *first, *second);
        });
    }

  private:
    // Sums over the samples looked at; around the shift that `about` gives, or around zero.
    template <typename Block>
    PYALIGN_BOTH void see(Block& block, int which, int64_t unit, bool whole, const Seen* about, Seen* all,
                          Seen* result) const {
        const int64_t looked = whole ? samples.count : kFew, step = whole ? 1 : samples.count / kFew;
        const double shift = about ? shift_of(*about) : 0.0;
        block.each([&](int t) {
            Seen mine{0.0, 0.0, 0.0, 0.0};
            for (int64_t k = t; k < looked; k += kThreads) {
                // Scattered, for samples a fixed distance apart could all be one corner of their maps.
                const int64_t within = static_cast<int64_t>(static_cast<uint32_t>(k) * 2654435761u) % step;
                const PositionedSample at = position_of(samples, k * step + within);
                if (!at.kept) continue;
                const MomentStream& from = stream[which];
                const double value = value_at(from, at.offset[which] + unit * from.unit_stride) - shift;
                mine.count += 1.0, mine.sum += value, mine.square += value * value;
                mine.most = fmax(mine.most, fabs(value));
            }
            all[t] = mine;
        });
        block.sync();
        for (int half = kThreads / 2; half > 0; half /= 2) {
            block.each([&](int t) {
                if (t >= half) return;
                const Seen& other = all[t + half];
                all[t].count += other.count, all[t].sum += other.sum, all[t].square += other.square;
                all[t].most = fmax(all[t].most, other.most);
            });
            block.sync();
        }
        block.each([&](int t) {
            if (t == 0) *result = all[0];
        });
        block.sync();
    }

    // A number of the type that values are centred in, so that a unit that never changes becomes exactly zero.
    PYALIGN_BOTH double shift_of(const Seen& seen) const {
        const double mean = seen.count > 0.0 ? seen.sum / seen.count : 0.0;
        if (!(fabs(mean) < (in_double ? 1e300 : 3e38))) return 0.0;
        return in_double ? mean : static_cast<double>(static_cast<float>(mean));
    }

    PYALIGN_BOTH void note(int which, int64_t unit, const Seen& seen, const Seen& around) const {
        const double shift = shift_of(seen), count = around.count > 0.0 ? around.count : 1.0;
        const double variance = around.square / count;
        const MomentUnits& to = units[which];
        to.shift[unit] = shift;
        to.scale[unit] = scale_for(sqrt(variance), around.most);
        const bool ordinary = variance > 0x1p-80 && variance < 0x1p80;
        const double nearer = exact ? 1.0 : 0.8;  // few samples: on the safe side
        const bool zero = seen.square == 0.0 && seen.most == 0.0;
        to.unsafe[unit] = !raw || !(zero || (ordinary && shift * shift <= nearer * variance));
    }

    // Brings the spread near 16 (no value then comes near the end of float16), or near 1 for doubles.
    PYALIGN_BOTH double scale_for(double spread, double most) const {
        if (!(spread > 0.0 && spread < 1e300 && most < 1e300)) return 1.0;
        const double wanted = in_double ? 1.0 / spread : fmin(16.0 / spread, 16384.0 / most);
        const int limit = in_double ? 1000 : 126;
        const int power = wanted < 1e300 ? ilogb(wanted) : limit;
        return ldexp(1.0, power < -limit ? -limit : power > limit ? limit : power);
    }
};

// One block per block of units: whether any of them is unsafe; clears what pads the last one.
struct BlockShiftsBody {
    static constexpr int kThreads = 128;
    int64_t blocks, tile;  // of x; units per block
    int64_t count[2];
    MomentUnits units[2];

    static constexpr size_t shared_bytes() { return sizeof(int32_t); }

    template <typename Block>
    PYALIGN_BOTH void operator()(Block& block, int x, int, int) const {
        const int which = x < blocks ? 0 : 1;
        const int64_t of = which ? x - blocks : x;
        const MomentUnits& to = units[which];
        int32_t* any = reinterpret_cast<int32_t*>(block.shared());
        block.each([&](int t) {
            if (t == 0) *any = 0;
        });
        block.sync();
        block.each([&](int t) {
            const int64_t unit = of * tile + t;
            if (t >= tile) return;
            if (unit >= count[which]) {
                to.shift[unit] = to.scale[unit] = 0.0;
            } else if (to.unsafe[unit]) {
                *any = 1;
            }
        });
        block.sync();
        block.each([&](int t) {
            if (t == 0) to.block_shifts[of] = *any;
        });
    }
};

}  // namespace pyalign
