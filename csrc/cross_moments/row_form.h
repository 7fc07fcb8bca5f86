// Tiles as rows: the samples of a unit lie side by side, as they do in NCHW activations, so that nothing is transposed;
// products are dot products of rows, in blocks that stay in registers. Best for few units: the horizontal sums at a
// block's end are a small part only where rows are long.
// Included by the kernels file, into its own namespace.
#pragma once

#include "cross_moments/tile_entries.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

// The mean of a few samples is near enough to the mean of all of them, unless `center` finds otherwise.
template <typename Real>
PYALIGN_INLINE RowSums<Real> start(const Real* row, int64_t samples) {
    const int64_t few = samples < kFew ? samples : kFew;
    return {row_sum(row, few) / static_cast<Real>(few), 0.0, 0.0};
}

template <typename From, typename Real>
void fill_rows(const From* source, int64_t unit_stride, int64_t units, int64_t samples, bool first, Real* tile,
               int64_t ld, RowSums<Real>* sums) {
    for (int64_t u = 0; u < units; ++u) {
        const From* from = source + u * unit_stride;
        Real* to = tile + u * ld;
        if constexpr (std::is_same_v<From, Real>) {
            if (first) sums[u] = start(from, samples);
            shift_row(from, to, samples, sums[u].shift, Real(1), &sums[u].sum, &sums[u].square);
        } else {
            for (int64_t s = 0; s < samples; ++s) to[s] = static_cast<Real>(widen(from[s]));
            if (first) sums[u] = start(to, samples);
            shift_row(to, to, samples, sums[u].shift, Real(1), &sums[u].sum, &sums[u].square);
        }
    }
}

template <typename From, typename Real>
void fill_rows_from(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
                    bool first, Real* tile, int64_t ld, RowSums<Real>* sums) {
    if (sample_stride == 1) return fill_rows(source, unit_stride, units, samples, first, tile, ld, sums);
    gather_any(source, unit_stride, sample_stride, units, samples, tile, ld);
    fill_rows(tile, ld, units, samples, first, tile, ld, sums);
}

// 16 vector registers hold 2 x 4 sums and their operands, 32 hold 6 x 4.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostRows = 6;
#else
constexpr int kMostRows = 2;
#endif
constexpr int kColumns = 4;
constexpr int64_t kRowUnits = 12;      // a multiple of every block's rows and columns
constexpr int64_t kNearColumns = 128;  // whose rows stay in the second-level cache

// Adds the sums of one row of a block to the product in float64.
template <typename Real>
PYALIGN_INLINE void add_row(const TileProduct<Real>& p, const Real* dots, int64_t i, int64_t j0, int64_t columns) {
    double* c = p.c + i * p.ldc + j0;
    const double scale = p.scale_a[i], lift = p.lift_a[i], drop = p.drop_a[i];
    const double *scale_b = p.scale_b + j0, *lift_b = p.lift_b + j0, *drop_b = p.drop_b + j0;
    double more[kColumns];
    for (int j = 0; j < kColumns; ++j) {
        more[j] = static_cast<double>(dots[j]) * (scale * scale_b[j]) + (lift * lift_b[j] - drop * drop_b[j]);
    }
    if (columns == kColumns && p.fresh) {
        for (int j = 0; j < kColumns; ++j) c[j] = more[j];
    } else if (columns == kColumns) {  // a fixed count becomes vector instructions
        for (int j = 0; j < kColumns; ++j) c[j] += more[j];
    } else {
        for (int64_t j = 0; j < columns; ++j) c[j] = (p.fresh ? 0.0 : c[j]) + more[j];
    }
}

template <int kRows, typename Real>
PYALIGN_INLINE void add_block(const TileProduct<Real>& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count;
    // The product is too large for the cache when there are many units: its lines arrive while the loop below runs.
    for (int64_t i = 0; i < rows; ++i) PYALIGN_PREFETCH(p.c + (i0 + i) * p.ldc + j0);
    const Real *a = p.a + i0 * p.ld, *b = p.b + j0 * p.ld;
    Vector sums[kRows][kColumns], totals[kRows][kColumns] = {};
    for (int64_t begin = 0; begin < p.length; begin += kStretch * lanes) {
        const int64_t end = begin + kStretch * lanes < p.length ? begin + kStretch * lanes : p.length;
        PYALIGN_UNROLL
        for (int i = 0; i < kRows; ++i) {
            PYALIGN_UNROLL
            for (int j = 0; j < kColumns; ++j) sums[i][j] = Vector{};
        }
        for (int64_t s = begin; s < end; s += lanes) {
            Vector right[kColumns];
            PYALIGN_UNROLL
            for (int j = 0; j < kColumns; ++j) right[j] = load(b + j * p.ld + s);
            PYALIGN_UNROLL
            for (int i = 0; i < kRows; ++i) {
                const Vector left = load(a + i * p.ld + s);
                PYALIGN_UNROLL
                for (int j = 0; j < kColumns; ++j) sums[i][j] += left * right[j];
            }
        }
        for (int i = 0; i < kRows; ++i) {
            for (int j = 0; j < kColumns; ++j) totals[i][j] += sums[i][j];
        }
    }
    Real dots[kRows][kColumns];
    PYALIGN_UNROLL
    for (int i = 0; i < kRows; ++i) sums_of(totals[i][0], totals[i][1], totals[i][2], totals[i][3], dots[i]);
    for (int64_t i = 0; i < rows; ++i) add_row(p, dots[i], i0 + i, j0, columns);
}

// All columns of a panel against up to kRows rows.
template <int kRows, typename Real>
void add_rows(const TileProduct<Real>& p, int64_t i0, int64_t rows, int64_t panel, int64_t end) {
    for (int64_t j0 = panel; j0 < end; j0 += kColumns) {
        if (p.upper && j0 + kColumns <= i0) continue;
        add_block<kRows>(p, i0, j0, rows, j0 + kColumns < end ? kColumns : end - j0);
    }
}

template <typename Real>
struct RowForm {
    static void fill(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
                     int64_t samples, bool first, Real* tile, int64_t ld, RowSums<Real>* sums) {
        with_elements(dtype, source, [&](const auto* from) {
            fill_rows_from(from, unit_stride, sample_stride, units, samples, first, tile, ld, sums);
        });
    }

    static void center(Real* tile, int64_t ld, int64_t units, int64_t samples, int64_t length,
                       const RowSums<Real>* sums, RowStats* stats) {
        for (int64_t u = 0; u < units; ++u) {
            Real* row = tile + u * ld;
            for (int64_t s = samples; s < length; ++s) row[s] = Real(0);
            stats[u] = {0.0, sums[u].sum, sums[u].square, 1.0};
            if (!settled(sums[u], samples)) stats[u] = center_anew(row, samples);
            stats[u] = around_mean(stats[u], static_cast<double>(sums[u].shift), static_cast<double>(samples));
        }
    }

    static void product(const TileProduct<Real>& p) {
        for (int64_t near = 0; near < p.columns; near += kNearColumns) {
            const int64_t end = near + kNearColumns < p.columns ? near + kNearColumns : p.columns;
            int64_t i0 = p.first_row;
            for (; i0 + kMostRows <= p.last_row; i0 += kMostRows) add_rows<kMostRows>(p, i0, kMostRows, near, end);
            const int64_t rest = p.last_row - i0;
            if (rest > kMostRows / 2) {
                add_rows<kMostRows>(p, i0, rest, near, end);
            } else if (rest > 0) {
                add_rows<kMostRows / 2>(p, i0, rest, near, end);
            }
        }
    }
};

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign
