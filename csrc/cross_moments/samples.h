// The samples of two streams: their axes merged into as few as possible, listed as runs of constant stride.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cross_moments/cross_moments.h"

namespace pyalign {

// The sample axes of both streams and the mask, merged where all of them allow it; the last axis runs fastest.
struct Samples {
    std::vector<int64_t> extent, x, y, mask;
    int64_t count = 1;
};

struct Run {
    int64_t x, y, length;  // offsets in elements
};

inline Samples sample_axes(const MomentInput& in) {
    std::vector<int64_t> extent, x, y, mask, order;
    for (int64_t dx = 0, dy = 0, ds = 0; dx < in.x.dim(); ++dx) {
        if (dx == in.axis_x) continue;
        if (dy == in.axis_y) ++dy;
        if (in.x.shape[dx] != 1) {
            extent.push_back(in.x.shape[dx]);
            x.push_back(in.x.strides[dx]);
            y.push_back(in.y.strides[dy]);
            mask.push_back(in.mask.data ? in.mask.strides[ds] : 0);
        }
        ++dy;
        ++ds;
    }
    order.resize(extent.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) { return x[p] > x[q]; });
    Samples merged;
    for (int64_t d : order) {
        merged.count *= extent[d];
        const bool joins = !merged.extent.empty() && merged.x.back() == extent[d] * x[d] &&
                           merged.y.back() == extent[d] * y[d] && merged.mask.back() == extent[d] * mask[d];
        if (joins) {
            merged.extent.back() *= extent[d];
            merged.x.back() = x[d], merged.y.back() = y[d], merged.mask.back() = mask[d];
        } else {
            merged.extent.push_back(extent[d]);
            merged.x.push_back(x[d]), merged.y.push_back(y[d]), merged.mask.push_back(mask[d]);
        }
    }
    if (merged.extent.empty()) merged.extent = {1}, merged.x = {1}, merged.y = {1}, merged.mask = {1};
    return merged;
}

// The pieces of samples [first, last) that lie one stride apart and are not masked; gives how many samples they hold.
inline int64_t list_runs(const Samples& samples, const uint8_t* mask, int64_t first, int64_t last,
                         std::vector<Run>& runs) {
    runs.clear();
    const int64_t inner = static_cast<int64_t>(samples.extent.size()) - 1;
    int64_t kept = 0;
    for (int64_t at = first; at < last;) {
        int64_t rest = at / samples.extent[inner];
        const int64_t start = at % samples.extent[inner];
        int64_t x = start * samples.x[inner], y = start * samples.y[inner], m = start * samples.mask[inner];
        for (int64_t d = inner - 1; d >= 0; --d) {
            const int64_t index = rest % samples.extent[d];
            rest /= samples.extent[d];
            x += index * samples.x[d], y += index * samples.y[d], m += index * samples.mask[d];
        }
        const int64_t length = std::min(last - at, samples.extent[inner] - start);
        if (!mask) {
            runs.push_back({x, y, length});
            kept += length;
        }
        for (int64_t s = 0; mask && s < length;) {
            int64_t end = s;
            while (end < length && mask[m + end * samples.mask[inner]]) ++end;
            if (end > s) runs.push_back({x + s * samples.x[inner], y + s * samples.y[inner], end - s});
            kept += end - s;
            s = end + 1;
        }
        at += length;
    }
    return kept;
}

}  // namespace pyalign
