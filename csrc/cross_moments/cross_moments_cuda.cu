// Cross moments on a CUDA device: kernels of the bodies in moments_*.h, and their launches.
#include "core/cuda_device.h"
#include "cross_moments/cross_moments_cuda.h"
#include "cross_moments/moments_queue.h"
#include "cross_moments/moments_step.h"

namespace pyalign {
namespace {

template <typename Body>
__global__ void __launch_bounds__(Body::kThreads) run_body(const Body body) {
    extern __shared__ double2 shared[];  // aligned to 16 bytes
    DeviceBlock<Body::kThreads> block(reinterpret_cast<char*>(shared));
    body(block, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
}

class DeviceQueue {
  public:
    explicit DeviceQueue(cudaStream_t stream) : stream_(stream) {}

    template <typename Body>
    void run(const Body& body, const Grid& grid, size_t shared) {
        if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
        if (shared > 48 * 1024) {
            check_cuda(cudaFuncSetAttribute(run_body<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared)),
                       "cross_moments: shared memory");
        }
        const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
        run_body<<<blocks, Body::kThreads, shared, stream_>>>(body);
        check_launch("cross_moments: launch");
    }

  private:
    cudaStream_t stream_;
};

}  // namespace

void cross_moments_cuda(const MomentInput& input, const MomentRecord& record, int32_t* status,
                        const MomentOptions& options, MomentStep step, const CudaCall& call) {
    const OnDevice device(call.device);
    DeviceQueue queue(stream_of(call));
    run_step(input, record, status, options, step, call.workspace, queue);
}

}  // namespace pyalign
