// One step of a call, from the tensors to the queue.
#pragma once

#include "cross_moments/cross_moments_cuda.h"
#include "cross_moments/moments_queue.h"

namespace pyalign {

inline MomentSizes sizes_of(const MomentInput& input, const MomentOptions& options) {
    MomentSizes sizes;
    sizes.units[0] = input.x.shape[input.axis_x];
    sizes.units[1] = input.y.shape[input.axis_y];
    sizes.samples = 1;
    for (int64_t d = 0; d < input.x.dim(); ++d) sizes.samples *= d == input.axis_x ? 1 : input.x.shape[d];
    sizes.full = input.full;
    sizes.in_double = input.x.dtype == DType::f64 || input.y.dtype == DType::f64;
    sizes.processors = options.processors;
    sizes.shared = options.shared;
    sizes.most_partial = options.most_partial;
    return sizes;
}

template <typename Queue>
void run_step(const MomentInput& input, const MomentRecord& record, int32_t* status, const MomentOptions& options,
              MomentStep step, void* workspace, Queue& queue) {
    const MomentPlan plan(sizes_of(input, options), workspace);
    const MomentViews views = views_of(input);
    MomentLaunches<Queue> launches(plan, views, record, status, options.allow_tf32, queue);
    if (step == MomentStep::commit) {
        launches.commit();
    } else {
        launches.measure(step == MomentStep::every);
    }
}

}  // namespace pyalign
