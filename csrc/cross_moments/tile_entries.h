// What both forms of a tile have in common: reading entries of any dtype, transposing, and centring one row.
// Included by the kernels file, into its own namespace.
#pragma once

#include <type_traits>

#include "core/vector.h"
#include "cross_moments/cross_moments_kernels.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int64_t kSquare = 16;  // units and samples of a block that is copied at once
constexpr int64_t kFew = 64;     // samples that choose a unit's shift
// Terms that a lane adds before its sum joins the total: equal terms, such as those of a unit that is mostly off, are
// rounded in one direction, so that the error grows with their number.
constexpr int64_t kStretch = 32;

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

// Eight rows of eight leave as eight columns.
template <typename From>
PYALIGN_INLINE void transpose_eight(const From* source, int64_t row_stride, float* to, int64_t ld) {
    __m256 r[8], s[8];
    for (int k = 0; k < 8; ++k) r[k] = load_eight(source + k * row_stride);
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
        _mm256_storeu_ps(to + k * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
        _mm256_storeu_ps(to + (k + 4) * ld, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
    }
}

template <typename From>
bool transpose(const From* source, int64_t row_stride, int64_t rows, int64_t columns, float* to, int64_t ld) {
    const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (int64_t r = 0; r < whole_rows; r += 8) {
        for (int64_t c = 0; c < whole_columns; c += 8) {
            transpose_eight(source + r * row_stride + c, row_stride, to + c * ld + r, ld);
        }
    }
    for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; ++r) {
            to[c * ld + r] = widen(source[r * row_stride + c]);
        }
    }
    return true;
}
#endif

// What the vector paths cannot transpose is left to plain loops.
template <typename From, typename Real>
bool transpose(const From*, int64_t, int64_t, int64_t, Real*, int64_t) {
    return false;
}

// to[i * ld + j] = source[i * outer_stride + j * inner_stride], in squares.
template <typename From, typename Real>
void gather(const From* source, int64_t outer_stride, int64_t inner_stride, int64_t outer, int64_t inner, Real* to,
            int64_t ld) {
    for (int64_t i0 = 0; i0 < outer; i0 += kSquare) {
        const int64_t i1 = i0 + kSquare < outer ? i0 + kSquare : outer;
        for (int64_t j0 = 0; j0 < inner; j0 += kSquare) {
            const int64_t j1 = j0 + kSquare < inner ? j0 + kSquare : inner;
            for (int64_t i = i0; i < i1; ++i) {
                for (int64_t j = j0; j < j1; ++j) {
                    to[i * ld + j] = static_cast<Real>(widen(source[i * outer_stride + j * inner_stride]));
                }
            }
        }
    }
}

// The same where it may be a transpose.
template <typename From, typename Real>
void gather_any(const From* source, int64_t outer_stride, int64_t inner_stride, int64_t outer, int64_t inner, Real* to,
                int64_t ld) {
    if (outer_stride == 1 && transpose(source, inner_stride, inner, outer, to, ld)) return;
    gather(source, outer_stride, inner_stride, outer, inner, to, ld);
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

template <typename Real>
bool summable(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
              int64_t samples) {
    const Real limit = static_cast<Real>(sizeof(Real) == 4 ? 0x1p100 : 0x1p1000);
    return with_elements(dtype, source, [&](const auto* from) {
        return summable_from(from, unit_stride, sample_stride, units, samples, limit);
    });
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

// Whether squares of such a sum neither vanish nor overflow.
template <typename Real>
PYALIGN_INLINE bool ordinary(double square) {
    return square > (sizeof(Real) == 4 ? 1e-24 : 1e-280) && square < (sizeof(Real) == 4 ? 1e24 : 1e280);
}

// Centres by the row's own mean; entries near the ends of the range, whose squares would overflow or vanish, are stored
// divided by a power of two.
template <typename Real>
RowStats center_anew(Real* row, int64_t samples) {
    const Real shift = row_sum(row, samples) / static_cast<Real>(samples);
    double sum = 0.0, square = 0.0, scale = 1.0;
    shift_row(row, row, samples, shift, Real(1), &sum, &square);
    if (!ordinary<Real>(square)) {
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

// Whether what filling found of a unit can stay: its shift is near enough to its mean.
template <typename Real>
PYALIGN_INLINE bool settled(const RowSums<Real>& sums, int64_t samples) {
    // The products are as exact as sums around the mean only where the shift is within a deviation of it.
    const bool near = 2.0 * sums.sum * sums.sum <= static_cast<double>(samples) * sums.square;
    return near && ordinary<Real>(sums.square);
}

// The statistics around the mean out of those around the shift.
PYALIGN_INLINE RowStats around_mean(RowStats stats, double shift, double samples) {
    stats.mean += shift + stats.residual / samples;
    stats.square -= stats.residual * stats.residual / samples;
    return stats;
}

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign
