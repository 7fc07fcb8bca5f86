// The inner loops of cross moments for one instruction set: both forms of a tile, for float and for double sums.
#include "cross_moments/cross_moments_kernels.h"

#include "cross_moments/panel_form.h"
#include "cross_moments/row_form.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

template <typename Real>
MomentKernels<Real> kernels() {
    return {summable<Real>,
            {1, kRowUnits, kMostRows, RowForm<Real>::fill, RowForm<Real>::center, RowForm<Real>::product},
            {kWidth<Real>, kWidth<Real>, kPanelRows, PanelForm<Real>::fill, PanelForm<Real>::center,
             PanelForm<Real>::product}};
}

}  // namespace

const MomentTable& moment_table() {
    static const MomentTable table = {kernels<float>(), kernels<double>()};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
