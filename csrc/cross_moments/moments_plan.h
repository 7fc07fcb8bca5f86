// How one call of cross moments is cut into launches, and where in the workspace everything lies.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "core/cuda_call.h"
#include "cross_moments/moments_merge.h"
#include "cross_moments/moments_product.h"
#include "cross_moments/moments_product_double.h"
#include "cross_moments/samples.h"

namespace pyalign {

struct MomentSizes {
    int64_t units[2] = {0, 0}, samples = 0;
    bool full = false, in_double = false;
    int processors = 1;        // multiprocessors of the device
    int64_t shared = 49152;    // bytes of shared memory that a block may have
    int64_t most_partial = 0;  // bytes of partial sums, where one slice of them is not more
};

constexpr int64_t kMostPartial = int64_t{1} << 28;
constexpr int64_t kLeastChunk = 1024, kMostChunk = 8192;

struct MomentPlan {
    explicit MomentPlan(const MomentSizes& sizes, void* workspace = nullptr) : sizes(sizes) {
        tile = sizes.in_double ? kDoubleTile : kPairTile;
        for (int w = 0; w < 2; ++w) blocks[w] = (sizes.units[w] + tile - 1) / tile;
        flushes = static_cast<size_t>(sizes.shared) >= Widest::shared_bytes(true);
        pairs[0] = blocks[0] * blocks[1];
        for (int w = 0; w < 2; ++w) pairs[1 + w] = sizes.full ? blocks[w] * blocks[w] : 0;
        const int64_t every = std::max<int64_t>(pairs[0] + pairs[1] + pairs[2], 1);
        // Four blocks for each processor, unless the slices become too short to be worth their sums.
        const int64_t wanted = std::max<int64_t>((4 * sizes.processors + every - 1) / every, 1);
        const int64_t most = flushes || sizes.in_double ? kMostChunk : kLeastChunk;
        const int64_t fair = (sizes.samples + wanted - 1) / wanted;
        chunk = std::clamp<int64_t>((fair + 255) / 256 * 256, kLeastChunk, most);
        slices = std::max<int64_t>((sizes.samples + chunk - 1) / chunk, 1);
        const int64_t slice_bytes = every * tile * tile * (sizes.in_double ? 8 : 4);
        const int64_t budget = sizes.most_partial > 0 ? sizes.most_partial : kMostPartial;
        per_launch = std::clamp<int64_t>(budget / slice_bytes, 1, slices);
        per_launch = std::min<int64_t>(per_launch, 65535);  // of a grid's last axis
        lay_out(workspace);
    }

    int64_t launches() const { return (slices + per_launch - 1) / per_launch; }

    MomentSizes sizes;
    int64_t tile = 0, blocks[2] = {0, 0}, chunk = 0, slices = 0, per_launch = 0;
    int64_t pairs[3] = {0, 0, 0};  // tiles of x with y, x with x, y with y
    bool flushes = false;
    size_t bytes = 0;
    MomentUnits units[2] = {};
    double *count = nullptr, *totals = nullptr;
    void* partial[3] = {};
    double* sum[3] = {};

    using Widest = ProductBody<Narrow::f16, 2, 32, true, false>;

  private:
    void lay_out(void* workspace) {
        WorkspaceParts parts(workspace);
        for (int w = 0; w < 2; ++w) {
            const size_t padded = static_cast<size_t>(blocks[w] * tile);
            MomentUnits& of = units[w];
            for (double** part : {&of.shift, &of.scale, &of.total, &of.spread, &of.delta}) {
                *part = parts.take<double>(padded);
            }
            of.unsafe = parts.take<uint8_t>(padded);
            of.block_shifts = parts.take<int32_t>(static_cast<size_t>(blocks[w]));
            of.sum = parts.take<double>(padded * static_cast<size_t>(slices));
            of.square = parts.take<double>(padded * static_cast<size_t>(slices));
        }
        count = parts.take<double>(static_cast<size_t>(slices));
        totals = parts.take<double>(2);
        for (int k = 0; k < 3; ++k) {
            const size_t entries = static_cast<size_t>(pairs[k] * tile * tile);
            const size_t all = entries * static_cast<size_t>(per_launch);
            partial[k] = sizes.in_double ? static_cast<void*>(parts.take<double>(all)) : parts.take<float>(all);
            if (launches() > 1) sum[k] = parts.take<double>(entries);
        }
        bytes = parts.bytes();
    }
};

// The streams as kernels see them. Raises std::invalid_argument for more sample axes than they can walk along.
struct MomentViews {
    MomentStream stream[2];
    MomentSamples samples;
    bool units_first = false;
};

inline bool in_fours(const TensorView& view, int64_t axis, const std::vector<int64_t>& strides,
                     const std::vector<int64_t>& extents, bool units_first) {
    const int64_t bytes = 4 * size_of(view.dtype);
    const auto whole = [&](int64_t stride) { return stride * size_of(view.dtype) % bytes == 0; };
    bool fits = reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(bytes) == 0;
    if (units_first) {
        fits = fits && view.strides[axis] == 1 && view.shape[axis] % 4 == 0;
        for (int64_t stride : strides) fits = fits && whole(stride);
        return fits;
    }
    fits =
        fits && strides.back() == 1 && extents.back() % 4 == 0 && (view.shape[axis] == 1 || whole(view.strides[axis]));
    for (size_t d = 0; d + 1 < strides.size(); ++d) fits = fits && whole(strides[d]);
    return fits;
}

inline MomentViews views_of(const MomentInput& in) {
    const Samples merged = sample_axes(in);
    if (merged.extent.size() > static_cast<size_t>(kMostAxes)) {
        throw std::invalid_argument("x: given " + std::to_string(merged.extent.size()) +
                                    " sample axes that do not lie one after another, expected at most " +
                                    std::to_string(kMostAxes) + ": pass x.contiguous() and y.contiguous()");
    }
    MomentViews views{};
    views.units_first = in.x.strides[in.axis_x] == 1 && in.y.strides[in.axis_y] == 1;
    const TensorView* view[2] = {&in.x, &in.y};
    const int64_t axis[2] = {in.axis_x, in.axis_y};
    const std::vector<int64_t>* strides[2] = {&merged.x, &merged.y};
    for (int w = 0; w < 2; ++w) {
        views.stream[w] = {view[w]->data, view[w]->dtype, view[w]->shape[axis[w]], view[w]->strides[axis[w]],
                           in_fours(*view[w], axis[w], *strides[w], merged.extent, views.units_first)};
    }
    views.samples.count = merged.count;
    views.samples.rank = static_cast<int>(merged.extent.size());
    views.samples.mask = static_cast<const uint8_t*>(in.mask.data);
    for (size_t d = 0; d < merged.extent.size(); ++d) {
        views.samples.extent[d] = merged.extent[d];
        views.samples.stride[0][d] = merged.x[d], views.samples.stride[1][d] = merged.y[d];
        views.samples.mask_stride[d] = merged.mask[d];
    }
    return views;
}

}  // namespace pyalign
