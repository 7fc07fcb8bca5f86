// Inner loops of cross moments: gathering a tile into rows, centring a row, and products of rows in 4 x 4 blocks.
// Rows stay (units, samples) and the product runs along samples, so that NCHW activations need no transpose.
#include "cross_moments/cross_moments_kernels.h"

#include <type_traits>

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int64_t kSquare = 16;  // units and samples of a block that is transposed at once
constexpr int64_t kFew = 64;     // samples that choose a row's shift

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

// to = (from - shift) * factor; adds the sum and the sum of squares of the new entries. From may be to.
template <typename Real>
void shift_row(const Real* from, Real* to, int64_t samples, Real shift, Real factor, double* sum, double* square) {
    typedef typename VectorOf<Real>::type Vector;
    constexpr int lanes = Lanes<Real>::count;
    const Vector shifts = broadcast(shift), factors = broadcast(factor);
    Vector sums[2] = {broadcast(Real(0)), broadcast(Real(0))}, squares[2] = {sums[0], sums[0]};
    int64_t s = 0;
    for (; s + 2 * lanes <= samples; s += 2 * lanes) {
        for (int k = 0; k < 2; ++k) {
            const Vector entry = (load(from + s + k * lanes) - shifts) * factors;
            store(to + s + k * lanes, entry);
            sums[k] += entry;
            squares[k] += entry * entry;
        }
    }
    *sum += sum_of<Real>(sums[0] + sums[1]);
    *square += sum_of<Real>(squares[0] + squares[1]);
    for (; s < samples; ++s) {
        to[s] = (from[s] - shift) * factor;
        *sum += to[s];
        *square += static_cast<double>(to[s]) * to[s];
    }
}

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
void fill_strided(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
                  Real* tile, int64_t ld) {
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

template <typename From, typename Real>
void fill_from(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
               bool first, Real* tile, int64_t ld, RowSums<Real>* sums) {
    if (sample_stride == 1) return fill_rows(source, unit_stride, units, samples, first, tile, ld, sums);
    if (unit_stride != 1 || !fill_transposed(source, sample_stride, units, samples, tile, ld)) {
        fill_strided(source, unit_stride, sample_stride, units, samples, tile, ld);
    }
    fill_rows(tile, ld, units, samples, first, tile, ld, sums);
}

template <typename From, typename Real>
bool summable_from(const From* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
                   Real limit) {
    // Along whichever axis is consecutive.
    const bool along = sample_stride == 1;
    const int64_t outer = along ? units : samples, outer_stride = along ? unit_stride : sample_stride;
    const int64_t inner = along ? samples : units, inner_stride = along ? 1 : unit_stride;
    int outside = 0;
    for (int64_t i = 0; i < outer && !outside; ++i) {
        const From* row = source + i * outer_stride;
        const auto look = [&](int64_t stride) {
            for (int64_t k = 0; k < inner; ++k) {
                const Real value = static_cast<Real>(widen(row[k * stride]));
                outside |= !(value < limit) | !(value > -limit);
            }
        };
        inner_stride == 1 ? look(1) : look(inner_stride);
    }
    return !outside;
}

// Calls visit with the source as a pointer to its elements.
template <typename Visit>
PYALIGN_INLINE auto with_elements(DType dtype, const void* source, const Visit& visit) {
    switch (dtype) {
        case DType::f64:
            return visit(static_cast<const double*>(source));
        case DType::f16:
            return visit(static_cast<const Half*>(source));
        case DType::bf16:
            return visit(static_cast<const BFloat*>(source));
        default:
            return visit(static_cast<const float*>(source));
    }
}

template <typename Real>
bool summable(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
              int64_t samples) {
    const Real limit = static_cast<Real>(sizeof(Real) == 4 ? 0x1p100 : 0x1p1000);
    return with_elements(dtype, source, [&](const auto* from) {
        return summable_from(from, unit_stride, sample_stride, units, samples, limit);
    });
}

template <typename Real>
void fill(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units, int64_t samples,
          bool first, Real* tile, int64_t ld, RowSums<Real>* sums) {
    with_elements(dtype, source, [&](const auto* from) {
        fill_from(from, unit_stride, sample_stride, units, samples, first, tile, ld, sums);
    });
}

// Centres by the row's own mean; entries near the ends of the range, whose squares would overflow or vanish, are stored
// divided by a power of two.
template <typename Real>
RowStats center_anew(Real* row, int64_t samples, double low, double high) {
    const Real shift = row_sum(row, samples) / static_cast<Real>(samples);
    double sum = 0.0, square = 0.0, scale = 1.0;
    shift_row(row, row, samples, shift, Real(1), &sum, &square);
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
            double scaled_sum = 0.0;
            square = 0.0;
            shift_row(row, row, samples, Real(0), static_cast<Real>(scale), &scaled_sum, &square);
            sum = scaled_sum / scale;
            square = square / scale / scale;
        }
    }
    return {static_cast<double>(shift), sum, square, 1.0 / scale};
}

template <typename Real>
RowStats center(Real* row, int64_t samples, int64_t length, const RowSums<Real>& sums) {
    const double n = static_cast<double>(samples), low = sizeof(Real) == 4 ? 1e-24 : 1e-280,
                 high = sizeof(Real) == 4 ? 1e24 : 1e280;
    for (int64_t s = samples; s < length; ++s) row[s] = Real(0);
    RowStats stats{0.0, sums.sum, sums.square, 1.0};
    // The products are as exact as sums around the mean only where the shift is within a deviation of it.
    const bool near = 2.0 * sums.sum * sums.sum <= n * sums.square;
    if (!(near && sums.square > low && sums.square < high)) stats = center_anew(row, samples, low, high);
    stats.mean += static_cast<double>(sums.shift) + stats.residual / n;
    stats.square -= stats.residual * stats.residual / n;
    return stats;
}

// 16 vector registers hold 2 x 4 sums and their operands, 32 hold 6 x 4.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostRows = 6;
#else
constexpr int kMostRows = 2;
#endif
constexpr int kColumns = 4;
// Terms that a lane adds before its sum joins the total: equal terms, such as those of a unit that is mostly off, are
// rounded in one direction, so that the error grows with their number.
constexpr int64_t kStretch = 32;
constexpr int64_t kPanel = 128;  // columns whose rows stay in the second-level cache

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
void product(const TileProduct<Real>& p) {
    for (int64_t panel = 0; panel < p.columns; panel += kPanel) {
        const int64_t end = panel + kPanel < p.columns ? panel + kPanel : p.columns;
        int64_t i0 = p.first_row;
        for (; i0 + kMostRows <= p.last_row; i0 += kMostRows) add_rows<kMostRows>(p, i0, kMostRows, panel, end);
        const int64_t rest = p.last_row - i0;
        if (rest > kMostRows / 2) {
            add_rows<kMostRows>(p, i0, rest, panel, end);
        } else if (rest > 0) {
            add_rows<kMostRows / 2>(p, i0, rest, panel, end);
        }
    }
}

}  // namespace

const MomentTable& moment_table() {
    static const MomentTable table = {{summable<float>, fill<float>, center<float>, product<float>},
                                      {summable<double>, fill<double>, center<double>, product<double>}};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
