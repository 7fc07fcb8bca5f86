// Cross moments on a CUDA device: the contract, and the same kernels run by the host for tests.
#pragma once

#include "core/cuda_call.h"
#include "cross_moments/cross_moments.h"

namespace pyalign {

struct MomentOptions {
    bool allow_tf32 = false;   // float32 products may have the precision of TF32
    int processors = 1;        // multiprocessors of the device
    int64_t shared = 0;        // bytes of shared memory that one block may have there
    int64_t most_partial = 0;  // bytes of partial sums; 0 for the usual
};

// `few` looks at some samples of each unit and sums all; where the status then says that these misled, `every` looks at
// all of them and sums again. `commit` adds what was summed to the record, which until then is only read.
enum class MomentStep { few, every, commit };

// Bytes of workspace for all steps of one call.
size_t cross_moments_workspace(const MomentInput& input, const MomentOptions& options);

// Queues a step. Status: two numbers on the device, whether a sum is not finite and whether the samples misled.
void cross_moments_cuda(const MomentInput& input, const MomentRecord& record, int32_t* status,
                        const MomentOptions& options, MomentStep step, const CudaCall& call);

// The same on the host, thread after thread, or each block's threads in the opposite order.
void cross_moments_emulated(const MomentInput& input, const MomentRecord& record, int32_t* status,
                            const MomentOptions& options, MomentStep step, void* workspace, bool backwards);

}  // namespace pyalign
