// The inner loops of cross moments, compiled once per instruction set. A tile holds the
// centred samples of some units.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/kernel_table.h"

namespace pyalign {

// What filling a row found: it stores x - shift, and sums that and its square.
template <typename Real>
struct RowSums {
    Real shift;
    double sum, square;
};

// What centring a row found. Stored entries are (x - shift) / scale; scale is a power of two, 1 for ordinary ranges.
struct RowStats {
    double mean;      // of the row
    double residual;  // sum of x - shift
    double square;    // sum of (x - mean)^2
    double scale;
};

// c[i, j] += scale_a[i] * scale_b[j] * (unit i of a . unit j of b) + lift_a[i] * lift_b[j] - drop_a[i] * drop_b[j]
template <typename Real>
struct TileProduct {
    const Real *a, *b;
    int64_t ld, length;  // samples: from one panel to the next, and those to sum
    int64_t first_row, last_row, columns;
    // One entry per unit; those of b can be read up to a multiple of MomentForm::units.
    const double *scale_a, *scale_b, *lift_a, *lift_b, *drop_a, *drop_b;
    double* c;
    int64_t ldc;
    bool upper;  // only blocks that touch the upper triangle
    bool fresh;  // c is not read but taken for zero
};

constexpr int64_t kMostTile = 1024;  // samples

// One way to lay out a tile, and the loops over it. Units lie in panels of `width`, in which a sample's units are side
// by side: entry (u, s) at ((u / width) * ld + s) * width + u % width. With width 1 a panel is a row of samples. Tiles
// begin at a multiple of 64 bytes and have room for a multiple of `units`; what is there beyond the last unit is
// finite. Ranges of units begin at a multiple of 48.
template <typename Real>
struct MomentForm {
    int64_t width, units, rows;  // rows: of a block of products
    // Entries of the tile = source[u * unit_stride + s * sample_stride] - shift, for one run of a tile's samples; the
    // first run chooses the shifts and starts the sums.
    void (*fill)(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
                 int64_t samples, bool first, Real* tile, int64_t ld, RowSums<Real>* sums);
    // Centres units whose shift was not near enough to their mean, and clears rows up to length, a multiple of 64
    // bytes.
    void (*center)(Real* tile, int64_t ld, int64_t units, int64_t samples, int64_t length, const RowSums<Real>* sums,
                   RowStats* stats);
    void (*product)(const TileProduct<Real>& product);
};

template <typename Real>
struct MomentKernels {
    // Whether sums and differences of the entries, which lie as for fill, stay finite in Real: none is NaN or huge.
    bool (*summable)(DType dtype, const void* source, int64_t unit_stride, int64_t sample_stride, int64_t units,
                     int64_t samples);
    MomentForm<Real> rows, panels;
};

struct MomentTable {
    MomentKernels<float> single;
    MomentKernels<double> wide;
};

PYALIGN_DECLARE(MomentTable, moment_table)

}  // namespace pyalign
