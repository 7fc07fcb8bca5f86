// Tiles as panels: a few vectors of units side by side, sample after sample, as the products of large matrices pack
// their operands (Van Zee and van de Geijn 2015). A block of products takes each sample's rows one by one and its
// columns as vectors, so that nothing is summed across lanes. Best for many units, and where units lie side by side in
// memory. Included by the kernels file, into its own namespace.
#pragma once

#include "cross_moments/tile_entries.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

// The sums of a block, its columns and one row fit the registers: 32, 16 where vectors have 32 bytes, else (SSE) too.
#if defined(__AVX512F__)
constexpr int kVectors = 3, kPanelRows = 8;
#elif defined(PYALIGN_HAS_AVX)
constexpr int kVectors = 3, kPanelRows = 4;
#elif defined(__aarch64__)
constexpr int kVectors = 4, kPanelRows = 4;
#else
constexpr int kVectors = 2, kPanelRows = 4;
#endif
constexpr int64_t kDeep = 512;                    // samples whose rows of a block stay in the first-level cache
constexpr int64_t kNearBytes = int64_t{3} << 18;  // of the columns that stay in the second-level cache

template <typename Real>
constexpr int kWidth = kVectors * Lanes<Real>::count;

// Every lane of a vector the same.
template <typename Real>
PYALIGN_INLINE typename VectorOf<Real>::type spread(Real value) {
#if defined(__GNUC__)
    return value - typename VectorOf<Real>::type{};
#else
    return broadcast(value);
#endif
}

// panel = from - shift, for the first kCount vectors of a panel's units, whose samples lie stride apart; adds the sums
// and the sums of squares of the new entries. From may be the panel.
template <int kCount, typename Real>
void shift_panel(const Real* from, int64_t stride, int64_t samples, int64_t units, Real* panel, RowSums<Real>* sums) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count, count = kCount * lanes, width = kWidth<Real>;
    Real shift[count] = {}, stretch[2][count];
    double sum[count] = {}, square[count] = {};
    for (int64_t u = 0; u < units; ++u) shift[u] = sums[u].shift;
    Vector shifts[kCount];
    for (int v = 0; v < kCount; ++v) shifts[v] = load(shift + v * lanes);
    for (int64_t begin = 0; begin < samples; begin += kStretch) {
        const int64_t end = begin + kStretch < samples ? begin + kStretch : samples;
        Vector totals[kCount], squares[kCount];
        for (int v = 0; v < kCount; ++v) totals[v] = squares[v] = Vector{};
        for (int64_t s = begin; s < end; ++s) {
            PYALIGN_UNROLL
            for (int v = 0; v < kCount; ++v) {
                const Vector entry = load(from + s * stride + v * lanes) - shifts[v];
                store(panel + s * width + v * lanes, entry);
                totals[v] += entry;
                squares[v] += entry * entry;
            }
        }
        for (int v = 0; v < kCount; ++v) {
            store(stretch[0] + v * lanes, totals[v]);
            store(stretch[1] + v * lanes, squares[v]);
        }
        for (int u = 0; u < count; ++u) {
            sum[u] += static_cast<double>(stretch[0][u]);
            square[u] += static_cast<double>(stretch[1][u]);
        }
    }
    for (int64_t u = 0; u < units; ++u) sums[u].sum += sum[u], sums[u].square += square[u];
}

// The same for as many vectors as there are units for.
template <int kCount, typename Real>
PYALIGN_INLINE void shift_units(const Real* from, int64_t stride, int64_t samples, int64_t units, Real* panel,
                                RowSums<Real>* sums) {
    if constexpr (kCount > 1) {
        if (units <= (kCount - 1) * Lanes<Real>::count) {
            return shift_units<kCount - 1>(from, stride, samples, units, panel, sums);
        }
    }
    shift_panel<kCount>(from, stride, samples, units, panel, sums);
}

// The mean of a few samples of each unit, near enough to the mean of all of them unless `center` finds otherwise.
template <typename Real>
void panel_shifts(const Real* from, int64_t stride, int64_t samples, int64_t units, RowSums<Real>* sums) {
    const int64_t few = samples < kFew ? samples : kFew;
    Real total[kWidth<Real>] = {};
    for (int64_t s = 0; s < few; ++s) {
        for (int64_t u = 0; u < units; ++u) total[u] += from[s * stride + u];
    }
    for (int64_t u = 0; u < units; ++u) sums[u] = {total[u] / static_cast<Real>(few), 0.0, 0.0};
}

template <typename From, typename Real>
void fill_panel(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
                bool first, Real* panel, RowSums<Real>* sums) {
    const Real* from = panel;
    int64_t stride = kWidth<Real>;
    if constexpr (std::is_same_v<From, Real>) {  // in one pass where vectors can be read
        if (unit_stride == 1 && units % Lanes<Real>::count == 0) from = source, stride = sample_stride;
    }
    if (from == panel) gather_any(source, sample_stride, unit_stride, samples, units, panel, stride);
    if (first) panel_shifts(from, stride, samples, units, sums);
    shift_units<kVectors>(from, stride, samples, units, panel, sums);
}

// Where the rows and the columns of a block begin: k is the first sample.
template <typename Real>
PYALIGN_INLINE const Real* panel_entry(const Real* tile, int64_t ld, int64_t unit, int64_t k) {
    constexpr int width = kWidth<Real>;
    return tile + (unit / width * ld + k) * width + unit % width;
}

// Adds a block's sums over samples [k, k + samples) to the product in float64.
template <int kCount, typename Real>
PYALIGN_INLINE void add_totals(const TileProduct<Real>& p, const Real* totals, int64_t i, int64_t j0, int64_t columns,
                               bool begins) {
    constexpr int count = kCount * Lanes<Real>::count, lanes = Lanes<double>::count;
    double* c = p.c + i * p.ldc + j0;
    const VectorD scale = spread(p.scale_a[i]), lift = spread(p.lift_a[i]), drop = spread(p.drop_a[i]);
    double more[count];
    PYALIGN_UNROLL
    for (int j = 0; j < count; j += lanes) {
        VectorD value = load_as_double(totals + j) * (scale * load(p.scale_b + j0 + j));
        if (begins) value += lift * load(p.lift_b + j0 + j) - drop * load(p.drop_b + j0 + j);
        if (columns == count && !(begins && p.fresh)) value += load(c + j);
        store(columns == count ? c + j : more + j, value);
    }
    if (columns == count) return;
    for (int64_t j = 0; j < columns; ++j) c[j] = (begins && p.fresh ? 0.0 : c[j]) + more[j];
}

// Up to kPanelRows rows against the first kCount vectors of a panel, over samples [k, k + samples).
template <int kCount, typename Real>
void add_panel_block(const TileProduct<Real>& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns, int64_t k,
                     int64_t samples) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count, width = kWidth<Real>;
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; j += 8) PYALIGN_PREFETCH(p.c + (i0 + i) * p.ldc + j0 + j);
    }
    const Real *a = panel_entry(p.a, p.ld, i0, k), *b = panel_entry(p.b, p.ld, j0, k);
    alignas(64) Real totals[kPanelRows][kCount * lanes];
    for (int64_t begin = 0; begin < samples; begin += kStretch) {
        const int64_t end = begin + kStretch < samples ? begin + kStretch : samples;
        Vector sums[kPanelRows][kCount];
        PYALIGN_UNROLL
        for (int i = 0; i < kPanelRows; ++i) {
            PYALIGN_UNROLL
            for (int v = 0; v < kCount; ++v) sums[i][v] = Vector{};
        }
        for (int64_t s = begin; s < end; ++s) {
            Vector right[kCount];
            PYALIGN_UNROLL
            for (int v = 0; v < kCount; ++v) right[v] = load(b + s * width + v * lanes);
            PYALIGN_UNROLL
            for (int i = 0; i < kPanelRows; ++i) {
                const Vector left = spread(a[s * width + i]);
                PYALIGN_UNROLL
                for (int v = 0; v < kCount; ++v) sums[i][v] += left * right[v];
            }
        }
        PYALIGN_UNROLL
        for (int i = 0; i < kPanelRows; ++i) {
            PYALIGN_UNROLL
            for (int v = 0; v < kCount; ++v) {
                Real* total = totals[i] + v * lanes;
                store(total, begin == 0 ? sums[i][v] : load(total) + sums[i][v]);
            }
        }
    }
    for (int64_t i = 0; i < rows; ++i) add_totals<kCount>(p, totals[i], i0 + i, j0, columns, k == 0);
}

// The same with as many vectors as there are columns for.
template <int kCount, typename Real>
PYALIGN_INLINE void add_panel(const TileProduct<Real>& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns,
                              int64_t k, int64_t samples) {
    if constexpr (kCount > 1) {
        if (columns <= (kCount - 1) * Lanes<Real>::count) {
            return add_panel<kCount - 1>(p, i0, j0, rows, columns, k, samples);
        }
    }
    add_panel_block<kCount>(p, i0, j0, rows, columns, k, samples);
}

template <typename Real>
struct PanelForm {
    static constexpr int64_t width = kWidth<Real>;

    static void fill(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
                     int64_t samples, bool first, Real* tile, int64_t ld, RowSums<Real>* sums) {
        with_elements(dtype, source, [&](const auto* from) {
            for (int64_t u = 0; u < units; u += width) {
                fill_panel(from + u * unit_stride, unit_stride, sample_stride, units - u < width ? units - u : width,
                           samples, first, tile + u * ld, sums + u);
            }
        });
    }

    static void center(Real* tile, int64_t ld, int64_t units, int64_t samples, int64_t, const RowSums<Real>* sums,
                       RowStats* stats) {
        for (int64_t u = 0; u < units; ++u) {
            stats[u] = {0.0, sums[u].sum, sums[u].square, 1.0};
            if (!settled(sums[u], samples)) {
                Real row[kMostTile];
                Real* unit = tile + u / width * width * ld + u % width;
                for (int64_t s = 0; s < samples; ++s) row[s] = unit[s * width];
                stats[u] = center_anew(row, samples);
                for (int64_t s = 0; s < samples; ++s) unit[s * width] = row[s];
            }
            stats[u] = around_mean(stats[u], static_cast<double>(sums[u].shift), static_cast<double>(samples));
        }
    }

    static void product(const TileProduct<Real>& p) {
        constexpr int64_t near = kNearBytes / (kDeep * width * static_cast<int64_t>(sizeof(Real))) * width;
        for (int64_t from = 0; from < p.columns; from += near) {
            const int64_t end = from + near < p.columns ? from + near : p.columns;
            for (int64_t k = 0; k < p.length; k += kDeep) {
                const int64_t samples = k + kDeep < p.length ? kDeep : p.length - k;
                for (int64_t i0 = p.first_row; i0 < p.last_row; i0 += kPanelRows) {
                    const int64_t rows = i0 + kPanelRows < p.last_row ? kPanelRows : p.last_row - i0;
                    for (int64_t j0 = from; j0 < end; j0 += width) {
                        if (p.upper && j0 + width <= i0) continue;
                        add_panel<kVectors>(p, i0, j0, rows, j0 + width < end ? width : end - j0, k, samples);
                    }
                }
            }
        }
    }
};

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign
