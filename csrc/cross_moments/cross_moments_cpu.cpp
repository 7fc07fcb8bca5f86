// Cross moments on the CPU. Few units: each thread sums its share of the tiles into a record of its own. Many units:
// the threads share each tile and then the rows of the product; a failure changes nothing, because a record that was
// empty is cleared again, and before any other is written to a first pass looks for NaN.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "core/pages.h"
#include "core/scratch.h"
#include "core/simd.h"
#include "cross_moments/cross_moments.h"
#include "cross_moments/cross_moments_kernels.h"
#include "cross_moments/samples.h"

namespace pyalign {
namespace {

constexpr int64_t kPrivateEntries = 1 << 18;  // largest product that every thread may hold for itself: 2 MB
constexpr int64_t kUnits = 48;                // filled by a thread at once: a multiple of the width of every panel
constexpr int kShares = 2;                    // of the products' rows for each thread

int64_t item_size(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// One stream's share of a tile: its rows, and what centring them found.
template <typename Real>
struct StreamTile {
    StreamTile(const MomentForm<Real>& form, int64_t units_, int64_t ld_)
        : units(units_), ld(ld_), storage(static_cast<size_t>(padded(form, units_) * ld_) * sizeof(Real)) {
        entries = storage.template as<Real>();
        // Only what pads the last panel or block is cleared; the rest is filled before it is read.
        std::fill(entries + units / form.width * form.width * ld, entries + padded(form, units) * ld, Real(0));
        for (auto* v : {&mean, &residual, &square, &scale, &lift, &delta, &drop}) v->assign(padded(form, units), 0.0);
        sums.resize(units);
        stats.resize(units);
    }

    static int64_t padded(const MomentForm<Real>& form, int64_t units) {
        return (units + form.units - 1) / form.units * form.units;
    }

    int64_t units, ld;
    Scratch storage;
    Real* entries;
    std::vector<RowSums<Real>> sums;
    std::vector<RowStats> stats;
    std::vector<double> mean, residual, square, scale, lift, delta, drop;
};

template <typename Real>
class Work {
  public:
    Work(const MomentInput& in, const MomentKernels<Real>& kernels, Interrupt& interrupt)
        : in_(in),
          kernels_(kernels),
          interrupt_(interrupt),
          samples_(sample_axes(in)),
          n_(in.x.shape[in.axis_x]),
          m_(in.y.shape[in.axis_y]),
          form_(in_panels() ? kernels.panels : kernels.rows) {
        const int64_t wanted = (n_ + m_) <= 128 || samples_.count <= kMostTile ? kMostTile : 512;
        tile_ = std::min(wanted, std::max<int64_t>(samples_.count, 1));
        tiles_ = (samples_.count + tile_ - 1) / tile_;
        length_unit_ = 64 / static_cast<int64_t>(sizeof(Real));
        // Samples for 64 bytes more than a power of two, or rows of a block would fall into the same few cache sets.
        ld_ = (tile_ + length_unit_ - 1) / length_unit_ * length_unit_ + length_unit_;
    }

    bool run(const MomentRecord& record, int threads) {
        const int64_t entries = n_ * m_ + (in_.full ? n_ * n_ + m_ * m_ : 0);
        const bool few = tiles_ < 4 * threads && entries > (1 << 12);
        if (samples_.count > 0 && (few || entries > kPrivateEntries)) return run_shared(record, threads);
        if (*record.count == 0.0) std::fill_n(record.comoment, n_ * m_, 0.0);
        return samples_.count == 0 || run_private(record, threads);
    }

  private:
    // Measured on AVX-512 and AVX2: panels win where there are many units, and earlier where units lie side by side.
    bool in_panels() const {
        const bool beside = in_.x.strides[in_.axis_x] == 1 && in_.y.strides[in_.axis_y] == 1;
        return n_ + m_ > (beside ? 24 : 128);
    }

    struct Sums {
        Sums(int64_t n, int64_t m, bool full)
            : mean_a(n), mean_b(m), comoment(n * m), square_a(full ? n * n : n), square_b(full ? m * m : m) {}
        MomentRecord record() {
            return {&count, mean_a.data(), mean_b.data(), comoment.data(), square_a.data(), square_b.data()};
        }
        double count = 0.0;
        std::vector<double> mean_a, mean_b, comoment, square_a, square_b;
    };

    bool run_private(const MomentRecord& record, int threads) {
        const int workers = static_cast<int>(std::clamp<int64_t>(threads, 1, tiles_));
        std::vector<std::unique_ptr<Sums>> sums(workers);
        run_on_threads(
            workers,
            [&](int worker) {
                sums[worker] = std::make_unique<Sums>(n_, m_, in_.full);
                StreamTile<Real> a(form_, n_, ld_), b(form_, m_, ld_);
                std::vector<Run> runs;
                const int64_t first = tiles_ * worker / workers, last = tiles_ * (worker + 1) / workers;
                for (int64_t t = first; t < last && !interrupt_.stopped(); ++t) {
                    const int64_t kept = list(t, runs);
                    if (kept == 0) continue;
                    pack(a, in_.x, in_.axis_x, runs, kept, true, 0, n_);
                    pack(b, in_.y, in_.axis_y, runs, kept, false, 0, m_);
                    const MomentRecord mine = sums[worker]->record();
                    begin_merge(mine, a, b, kept);
                    add_products(mine, a, b, kept, 0, n_);
                    if (in_.full) add_full(mine, a, b, kept);
                }
            },
            interrupt_);
        if (interrupt_.stopped()) return false;
        for (auto& sum : sums) {
            if (!finite(*sum)) return false;
        }
        for (auto& sum : sums) merge(record, *sum);
        if (in_.full) mirror(record);
        return true;
    }

    bool run_shared(const MomentRecord& record, int threads) {
        const bool empty = *record.count == 0.0;  // what was empty can be cleared again
        // Nothing may fail once another record is written to: its samples are looked through first.
        if (!empty && tiles_ > 1 && !summable_shared(threads)) return false;
        StreamTile<Real> a(form_, n_, ld_), b(form_, m_, ld_);
        std::vector<Run> runs;
        Interrupt no_interrupt(nullptr);
        Interrupt& interrupt = empty ? interrupt_ : no_interrupt;
        if (empty) expect_many_pages(record.comoment, static_cast<size_t>(n_ * m_) * sizeof(double));
        bool fresh = empty;
        for (int64_t t = 0; t < tiles_ && !interrupt.stopped(); ++t) {
            const int64_t kept = list(t, runs);
            if (kept == 0) continue;
            pack_shared(a, b, runs, kept, threads, interrupt);
            const bool looked = !empty && tiles_ > 1;
            if (interrupt.stopped() || !(looked || (finite(a) && finite(b)))) return undone(record, empty);
            begin_merge(record, a, b, kept);
            each_share(n_, threads, interrupt,
                       [&](int64_t begin, int64_t end) { add_products(record, a, b, kept, begin, end, fresh); });
            fresh = false;
            if (in_.full) add_full_shared(record, a, b, kept, threads, interrupt);
        }
        if (interrupt.stopped()) return undone(record, empty);
        if (fresh) std::fill_n(record.comoment, n_ * m_, 0.0);
        if (in_.full) mirror(record);
        return true;
    }

    // A record as it was before a call that fails.
    bool undone(const MomentRecord& record, bool empty) const {
        if (!empty) return false;
        *record.count = 0.0;
        std::fill_n(record.mean_a, n_, 0.0);
        std::fill_n(record.mean_b, m_, 0.0);
        std::fill_n(record.comoment, n_ * m_, 0.0);
        std::fill_n(record.square_a, in_.full ? n_ * n_ : n_, 0.0);
        std::fill_n(record.square_b, in_.full ? m_ * m_ : m_, 0.0);
        return false;
    }

    bool summable_shared(int threads) {
        std::atomic<bool> all{true};
        run_each(threads, tiles_, interrupt_, [&](int64_t t) {
            std::vector<Run> runs;
            list(t, runs);
            for (const Run& run : runs) {
                if (!summable(in_.x, in_.axis_x, run.x, samples_.x.back(), run.length) ||
                    !summable(in_.y, in_.axis_y, run.y, samples_.y.back(), run.length)) {
                    all = false;
                }
            }
        });
        return all && !interrupt_.stopped();
    }

    bool summable(const TensorView& view, int64_t axis, int64_t offset, int64_t stride, int64_t length) const {
        return kernels_.summable(view.dtype, static_cast<const char*>(view.data) + offset * item_size(view.dtype),
                                 view.strides[axis], stride, view.shape[axis], length);
    }

    // The rows of a product in a few large shares: each reads all columns.
    template <typename Add>
    void each_share(int64_t units, int threads, Interrupt& interrupt, const Add& add) const {
        const int64_t wanted = chunks(units, kShares * threads), rows = chunks(wanted, form_.rows) * form_.rows;
        run_each(threads, chunks(units, rows), interrupt,
                 [&](int64_t share) { add(share * rows, std::min(units, (share + 1) * rows)); });
    }

    static int64_t chunks(int64_t units, int64_t of) { return (units + of - 1) / of; }

    int64_t list(int64_t t, std::vector<Run>& runs) const {
        const uint8_t* mask = static_cast<const uint8_t*>(in_.mask.data);
        return list_runs(samples_, mask, t * tile_, std::min(samples_.count, (t + 1) * tile_), runs);
    }

    int64_t length(int64_t kept) const { return (kept + length_unit_ - 1) / length_unit_ * length_unit_; }

    void pack(StreamTile<Real>& tile, const TensorView& view, int64_t axis, const std::vector<Run>& runs, int64_t kept,
              bool first, int64_t begin, int64_t end) const {
        const int64_t unit_stride = view.strides[axis], stride = first ? samples_.x.back() : samples_.y.back();
        int64_t at = 0;
        for (const Run& run : runs) {
            const int64_t offset = (first ? run.x : run.y) + begin * unit_stride;
            form_.fill(view.dtype, static_cast<const char*>(view.data) + offset * item_size(view.dtype), unit_stride,
                       stride, end - begin, run.length, at == 0, tile.entries + begin * ld_ + at * form_.width, ld_,
                       tile.sums.data() + begin);
            at += run.length;
        }
        form_.center(tile.entries + begin * ld_, ld_, end - begin, kept, length(kept), tile.sums.data() + begin,
                     tile.stats.data() + begin);
        for (int64_t u = begin; u < end; ++u) {
            const RowStats& stats = tile.stats[u];
            tile.mean[u] = stats.mean, tile.residual[u] = stats.residual;
            tile.square[u] = stats.square, tile.scale[u] = stats.scale;
        }
    }

    void pack_shared(StreamTile<Real>& a, StreamTile<Real>& b, const std::vector<Run>& runs, int64_t kept, int threads,
                     Interrupt& interrupt) {
        const int64_t of_a = chunks(n_, kUnits), of_b = chunks(m_, kUnits);
        run_each(threads, of_a + of_b, interrupt, [&](int64_t chunk) {
            const bool first = chunk < of_a;
            const int64_t begin = (first ? chunk : chunk - of_a) * kUnits;
            if (first) {
                pack(a, in_.x, in_.axis_x, runs, kept, true, begin, std::min(n_, begin + kUnits));
            } else {
                pack(b, in_.y, in_.axis_y, runs, kept, false, begin, std::min(m_, begin + kUnits));
            }
        });
    }

    // Moves count, means and the plain squares of the record on by one tile, and leaves in the tiles what the products
    // need: lift_a[i] * delta_b[j] is the pairwise update's outer product.
    void begin_merge(const MomentRecord& record, StreamTile<Real>& a, StreamTile<Real>& b, int64_t kept) const {
        const double old = *record.count, more = static_cast<double>(kept), total = old + more;
        const auto step = [&](StreamTile<Real>& tile, double* mean, double* square) {
            for (int64_t u = 0; u < tile.units; ++u) {
                const double delta = tile.mean[u] - mean[u];
                tile.delta[u] = delta;
                tile.lift[u] = delta * (old * more / total);
                tile.drop[u] = tile.residual[u] / more;
                mean[u] += delta * (more / total);
                if (!in_.full) square[u] += tile.square[u] + delta * tile.lift[u];
            }
        };
        step(a, record.mean_a, record.square_a);
        step(b, record.mean_b, record.square_b);
        *record.count = total;
    }

    TileProduct<Real> product(const StreamTile<Real>& a, const StreamTile<Real>& b, int64_t kept, double* c) const {
        return {a.entries,
                b.entries,
                ld_,
                form_.width == 1 ? length(kept) : kept,
                0,
                a.units,
                b.units,
                a.scale.data(),
                b.scale.data(),
                a.lift.data(),
                b.delta.data(),
                a.drop.data(),
                b.residual.data(),
                c,
                b.units,
                false,
                false};
    }

    void add_products(const MomentRecord& record, const StreamTile<Real>& a, const StreamTile<Real>& b, int64_t kept,
                      int64_t begin, int64_t end, bool fresh = false) const {
        TileProduct<Real> p = product(a, b, kept, record.comoment);
        p.first_row = begin, p.last_row = end, p.fresh = fresh;
        form_.product(p);
    }

    void add_within(const StreamTile<Real>& tile, double* square, int64_t kept, int64_t begin, int64_t end) const {
        TileProduct<Real> p = product(tile, tile, kept, square);
        p.upper = true, p.first_row = begin, p.last_row = end;
        form_.product(p);
    }

    void add_full(const MomentRecord& record, const StreamTile<Real>& a, const StreamTile<Real>& b,
                  int64_t kept) const {
        add_within(a, record.square_a, kept, 0, n_);
        add_within(b, record.square_b, kept, 0, m_);
    }

    void add_full_shared(const MomentRecord& record, const StreamTile<Real>& a, const StreamTile<Real>& b, int64_t kept,
                         int threads, Interrupt& interrupt) const {
        for (const auto& [tile, square] : {std::pair(&a, record.square_a), std::pair(&b, record.square_b)}) {
            each_share(tile->units, threads, interrupt, [&, tile = tile, square = square](int64_t begin, int64_t end) {
                add_within(*tile, square, kept, begin, end);
            });
        }
    }

    // Adds a thread's record to the caller's.
    void merge(const MomentRecord& into, Sums& from) const {
        if (from.count == 0.0) return;
        const double old = *into.count, total = old + from.count, weight = old * from.count / total;
        std::vector<double> da(n_), db(m_);
        for (int64_t i = 0; i < n_; ++i) da[i] = from.mean_a[i] - into.mean_a[i];
        for (int64_t j = 0; j < m_; ++j) db[j] = from.mean_b[j] - into.mean_b[j];
        const auto add = [&](double* c, const std::vector<double>& more, const auto& left, const auto& right) {
            for (size_t i = 0; i < left.size(); ++i) {
                for (size_t j = 0; j < right.size(); ++j) {
                    c[i * right.size() + j] += more[i * right.size() + j] + weight * left[i] * right[j];
                }
            }
        };
        add(into.comoment, from.comoment, da, db);
        if (in_.full) {
            add(into.square_a, from.square_a, da, da);
            add(into.square_b, from.square_b, db, db);
        } else {
            for (int64_t i = 0; i < n_; ++i) into.square_a[i] += from.square_a[i] + weight * da[i] * da[i];
            for (int64_t j = 0; j < m_; ++j) into.square_b[j] += from.square_b[j] + weight * db[j] * db[j];
        }
        for (int64_t i = 0; i < n_; ++i) into.mean_a[i] += da[i] * (from.count / total);
        for (int64_t j = 0; j < m_; ++j) into.mean_b[j] += db[j] * (from.count / total);
        *into.count = total;
    }

    // Within a stream only the upper triangle is summed.
    void mirror(const MomentRecord& record) const {
        for (const auto& [square, d] : {std::pair(record.square_a, n_), std::pair(record.square_b, m_)}) {
            for (int64_t i = 0; i < d; ++i) {
                for (int64_t j = 0; j < i; ++j) square[i * d + j] = square[j * d + i];
            }
        }
    }

    static bool all_finite(const std::vector<double>& values) {
        return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
    }
    // A sum of squares is not finite whenever one of its samples is not, and bounds the products of its row.
    bool finite(const StreamTile<Real>& tile) const { return all_finite(tile.mean) && all_finite(tile.square); }
    bool finite(const Sums& sums) const {
        return all_finite(sums.mean_a) && all_finite(sums.mean_b) && all_finite(sums.square_a) &&
               all_finite(sums.square_b);
    }

    const MomentInput& in_;
    const MomentKernels<Real>& kernels_;
    Interrupt& interrupt_;
    const Samples samples_;
    const int64_t n_, m_;
    const MomentForm<Real>& form_;
    int64_t tile_, tiles_, length_unit_, ld_;
};

}  // namespace

bool cross_moments_cpu(const MomentInput& input, const MomentRecord& record, int threads, Interrupt& interrupt) {
    const MomentTable& table = PYALIGN_SELECT(moment_table);
    if (input.x.dtype == DType::f64 || input.y.dtype == DType::f64) {
        return Work<double>(input, table.wide, interrupt).run(record, threads);
    }
    return Work<float>(input, table.single, interrupt).run(record, threads);
}

}  // namespace pyalign
