// Inner loops of cross moments: gathering a tile into rows, centring a row, and products of rows in 4 x 4 blocks.
// Rows stay (units, samples) and the product runs along samples, so that NCHW activations need no transpose.
#include "cross_moments/cross_moments_kernels.h"

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int64_t kSquare = 16;  // units and samples of a block that is transposed at once

template <typename From, typename Real>
void fill_from(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples, Real* tile,
               int64_t ld) {
    if (sample_stride == 1) {
        for (int64_t u = 0; u < units; ++u) {
            const From* from = source + u * unit_stride;
            Real* to = tile + u * ld;
            for (int64_t s = 0; s < samples; ++s) to[s] = static_cast<Real>(widen(from[s]));
        }
        return;
    }
    for (int64_t u0 = 0; u0 < units; u0 += kSquare) {
        const int64_t u1 = u0 + kSquare < units ? u0 + kSquare : units;
        for (int64_t s0 = 0; s0 < samples; s0 += kSquare) {
            const int64_t s1 = s0 + kSquare < samples ? s0 + kSquare : samples;
            for (int64_t u = u0; u < u1; ++u) {
                for (int64_t s = s0; s < s1; ++s) {
                    tile[u * ld + s] = static_cast<Real>(widen(source[u * unit_stride + s * sample_stride]));
                }
            }
        }
    }
}

template <typename Real>
void fill(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
          Real* tile, int64_t ld) {
    switch (dtype) {
        case DType::f64:
            return fill_from(static_cast<const double*>(source), unit_stride, sample_stride, units, samples, tile, ld);
        case DType::f16:
            return fill_from(static_cast<const Half*>(source), unit_stride, sample_stride, units, samples, tile, ld);
        case DType::bf16:
            return fill_from(static_cast<const BFloat*>(source), unit_stride, sample_stride, units, samples, tile, ld);
        default:
            return fill_from(static_cast<const float*>(source), unit_stride, sample_stride, units, samples, tile, ld);
    }
}

// Four accumulators of vectors: the sums run in parallel and each adds few terms, so rounding stays near one unit.
template <typename Real>
Real row_sum(const Real* row, int64_t samples) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count;
    Vector sums[4] = {broadcast(Real(0)), broadcast(Real(0)), broadcast(Real(0)), broadcast(Real(0))};
    int64_t s = 0;
    for (; s + 4 * lanes <= samples; s += 4 * lanes) {
        for (int k = 0; k < 4; ++k) sums[k] += load(row + s + k * lanes);
    }
    Real total = sum_of<Real>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; s < samples; ++s) total += row[s];
    return total;
}

// Subtracts shift, multiplies by factor; gives the sum and the sum of squares of the new entries.
template <typename Real>
void shift_row(Real* row, int64_t samples, Real shift, Real factor, double* sum, double* square) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count;
    const Vector shifts = broadcast(shift), factors = broadcast(factor);
    Vector sums[2] = {broadcast(Real(0)), broadcast(Real(0))}, squares[2] = {sums[0], sums[0]};
    int64_t s = 0;
    for (; s + 2 * lanes <= samples; s += 2 * lanes) {
        for (int k = 0; k < 2; ++k) {
            const Vector entry = (load(row + s + k * lanes) - shifts) * factors;
            store(row + s + k * lanes, entry);
            sums[k] += entry;
            squares[k] += entry * entry;
        }
    }
    *sum = sum_of<Real>(sums[0] + sums[1]);
    *square = sum_of<Real>(squares[0] + squares[1]);
    for (; s < samples; ++s) {
        row[s] = (row[s] - shift) * factor;
        *sum += row[s];
        *square += static_cast<double>(row[s]) * row[s];
    }
}

template <typename Real>
RowStats center(Real* row, int64_t samples, int64_t length) {
    const Real shift = row_sum(row, samples) / static_cast<Real>(samples);
    double sum, square, scale = 1.0;
    shift_row(row, samples, shift, Real(1), &sum, &square);
    // Squares near the ends of the range would overflow, or vanish: such a row is stored divided by a power of two.
    const double low = sizeof(Real) == 4 ? 1e-24 : 1e-280, high = sizeof(Real) == 4 ? 1e24 : 1e280;
    if (!(square > low && square < high)) {
        int occupied = 0;
        for (int64_t s = 0; s < samples; ++s) occupied |= row[s] != Real(0);
        double largest = 0.0;
        for (int64_t s = 0; occupied && s < samples; ++s) {
            const double magnitude = row[s] < 0 ? -static_cast<double>(row[s]) : static_cast<double>(row[s]);
            if (magnitude > largest) largest = magnitude;
        }
        if (largest > 0.0 && largest - largest == 0.0) {
            while (largest * scale < 0.5 && scale < (sizeof(Real) == 4 ? 0x1p100 : 0x1p1000)) scale *= 2.0;
            while (largest * scale > 1.0) scale *= 0.5;
            double scaled_sum;
            shift_row(row, samples, Real(0), static_cast<Real>(scale), &scaled_sum, &square);
            sum = scaled_sum / scale;
            square = square / scale / scale;
        }
    }
    for (int64_t s = samples; s < length; ++s) row[s] = Real(0);
    const double residual = sum;
    return {static_cast<double>(shift) + residual / static_cast<double>(samples), residual,
            square - residual * residual / static_cast<double>(samples), 1.0 / scale};
}

// 16 vector registers hold 2 x 4 sums and their operands, 32 hold 4 x 4.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kColumns = 4;
constexpr int64_t kPanel = 128;  // columns whose rows stay in the second-level cache

template <typename Real>
PYALIGN_INLINE void add_block(const TileProduct<Real>& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count;
    Vector sums[kRows][kColumns];
    for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kColumns; ++j) sums[i][j] = broadcast(Real(0));
    }
    const Real *a = p.a + i0 * p.ld, *b = p.b + j0 * p.ld;
    for (int64_t s = 0; s < p.length; s += lanes) {
        Vector right[kColumns];
        for (int j = 0; j < kColumns; ++j) right[j] = load(b + j * p.ld + s);
        for (int i = 0; i < kRows; ++i) {
            const Vector left = load(a + i * p.ld + s);
            for (int j = 0; j < kColumns; ++j) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < kRows; ++i) {
        Real dots[kColumns];
        sums_of(sums[i][0], sums[i][1], sums[i][2], sums[i][3], dots);
        if (i >= rows) continue;
        double* c = p.c + (i0 + i) * p.ldc + j0;
        const double scale = p.scale_a[i0 + i], lift = p.lift_a[i0 + i], drop = p.drop_a[i0 + i];
        for (int64_t j = 0; j < columns; ++j) {
            c[j] += dots[j] * (scale * p.scale_b[j0 + j]) + (lift * p.lift_b[j0 + j] - drop * p.drop_b[j0 + j]);
        }
    }
}

template <typename Real>
void product(const TileProduct<Real>& p) {
    for (int64_t panel = 0; panel < p.columns; panel += kPanel) {
        const int64_t end = panel + kPanel < p.columns ? panel + kPanel : p.columns;
        for (int64_t i0 = p.first_row; i0 < p.last_row; i0 += kRows) {
            const int64_t rows = i0 + kRows < p.last_row ? kRows : p.last_row - i0;
            for (int64_t j0 = panel; j0 < end; j0 += kColumns) {
                if (p.upper && j0 + kColumns <= i0) continue;
                add_block(p, i0, j0, rows, j0 + kColumns < end ? kColumns : end - j0);
            }
        }
    }
}

}  // namespace

const MomentTable& moment_table() {
    static const MomentTable table = {{fill<float>, center<float>, product<float>},
                                      {fill<double>, center<double>, product<double>}};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
