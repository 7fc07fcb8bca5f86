// Inner loops of cross moments: gathering a tile into rows, centring a row, and products of rows in 4 x 4 blocks.
// Rows stay (units, samples) and the product runs along samples, so that NCHW activations need no transpose.
#include "cross_moments/cross_moments_kernels.h"

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int64_t kSquare = 16;  // units and samples of a block that is transposed at once

#if defined(PYALIGN_HAS_AVX)
PYALIGN_INLINE __m256 load_eight(const float* from) {
    return _mm256_loadu_ps(from);
}
PYALIGN_INLINE __m256 load_eight(const double* from) {
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(from + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(from)));
}
PYALIGN_INLINE __m256 load_eight(const BFloat* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
PYALIGN_INLINE __m256 load_eight(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Eight samples of eight units, read as eight vectors of units, leave as eight rows of samples.
template <typename From>
PYALIGN_INLINE void transpose_eight(const From* source, int64_t sample_stride, float* tile, int64_t ld) {
    __m256 r[8], s[8];
    for (int k = 0; k < 8; ++k) r[k] = load_eight(source + k * sample_stride);
    for (int k = 0; k < 8; k += 2) {
        s[k] = _mm256_unpacklo_ps(r[k], r[k + 1]);
        s[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
    }
    for (int k = 0; k < 8; k += 4) {
        r[k] = _mm256_shuffle_ps(s[k], s[k + 2], 0x44);
        r[k + 1] = _mm256_shuffle_ps(s[k], s[k + 2], 0xee);
        r[k + 2] = _mm256_shuffle_ps(s[k + 1], s[k + 3], 0x44);
        r[k + 3] = _mm256_shuffle_ps(s[k + 1], s[k + 3], 0xee);
    }
    for (int k = 0; k < 4; ++k) {
        _mm256_storeu_ps(tile + k * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
        _mm256_storeu_ps(tile + (k + 4) * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
    }
}

template <typename From>
bool fill_transposed(const From* source, int64_t sample_stride, int64_t units, int64_t samples, float* tile,
                     int64_t ld) {
    const int64_t whole_units = units / 8 * 8, whole_samples = samples / 8 * 8;
    for (int64_t s = 0; s < whole_samples; s += 8) {
        for (int64_t u = 0; u < whole_units; u += 8) {
            transpose_eight(source + s * sample_stride + u, sample_stride, tile + u * ld + s, ld);
        }
    }
    for (int64_t u = 0; u < units; ++u) {
        for (int64_t s = u < whole_units ? whole_samples : 0; s < samples; ++s) {
            tile[u * ld + s] = widen(source[s * sample_stride + u]);
        }
    }
    return true;
}
#endif

// What the vector paths cannot transpose is left to plain loops.
template <typename From, typename Real>
bool fill_transposed(const From*, int64_t, int64_t, int64_t, Real*, int64_t) {
    return false;
}

template <typename From, typename Real>
void fill_from(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
               Real* tile, int64_t ld) {
    if (sample_stride == 1) {
        for (int64_t u = 0; u < units; ++u) {
            const From* from = source + u * unit_stride;
            Real* to = tile + u * ld;
            for (int64_t s = 0; s < samples; ++s) to[s] = static_cast<Real>(widen(from[s]));
        }
        return;
    }
    if (unit_stride == 1 && fill_transposed(source, sample_stride, units, samples, tile, ld)) return;
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

// 16 vector registers hold 2 x 4 sums and their operands, 32 hold 6 x 4.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6;
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
    // The product is too large for the cache when there are many units: its lines arrive while the loop below runs.
    for (int64_t i = 0; i < rows; ++i) PYALIGN_PREFETCH(p.c + (i0 + i) * p.ldc + j0);
    const Real *a = p.a + i0 * p.ld, *b = p.b + j0 * p.ld;
    for (int64_t s = 0; s < p.length; s += lanes) {
        Vector right[kColumns];
        for (int j = 0; j < kColumns; ++j) right[j] = load(b + j * p.ld + s);
        for (int i = 0; i < kRows; ++i) {
            const Vector left = load(a + i * p.ld + s);
            for (int j = 0; j < kColumns; ++j) sums[i][j] += left * right[j];
        }
    }
    double scale_b[kColumns] = {}, lift_b[kColumns] = {}, drop_b[kColumns] = {};
    for (int64_t j = 0; j < columns; ++j) {
        scale_b[j] = p.scale_b[j0 + j], lift_b[j] = p.lift_b[j0 + j], drop_b[j] = p.drop_b[j0 + j];
    }
    for (int i = 0; i < kRows; ++i) {
        Real dots[kColumns];
        sums_of(sums[i][0], sums[i][1], sums[i][2], sums[i][3], dots);
        if (i >= rows) continue;
        double* c = p.c + (i0 + i) * p.ldc + j0;
        const double scale = p.scale_a[i0 + i], lift = p.lift_a[i0 + i], drop = p.drop_a[i0 + i];
        double more[kColumns];
        for (int j = 0; j < kColumns; ++j) {
            more[j] = dots[j] * (scale * scale_b[j]) + (lift * lift_b[j] - drop * drop_b[j]);
        }
        if (columns == kColumns) {  // a fixed count becomes vector instructions
            for (int j = 0; j < kColumns; ++j) c[j] += more[j];
        } else {
            for (int64_t j = 0; j < columns; ++j) c[j] += more[j];
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
