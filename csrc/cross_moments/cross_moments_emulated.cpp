// The kernels of cross moments run by the host, for tests; and the size of their workspace.
#include "core/host_block.h"
#include "cross_moments/moments_step.h"

namespace pyalign {
namespace {

class HostQueue {
  public:
    explicit HostQueue(bool backwards) : backwards_(backwards) {}

    template <typename Body>
    void run(const Body& body, const Grid& grid, size_t shared) {
        run_on_host(body, grid.x, grid.y, grid.z, shared, backwards_);
    }

  private:
    bool backwards_;
};

}  // namespace

size_t cross_moments_workspace(const MomentInput& input, const MomentOptions& options) {
    views_of(input);  // raises for what the kernels could not walk along, before anything is allocated
    return MomentPlan(sizes_of(input, options)).bytes;
}

void cross_moments_emulated(const MomentInput& input, const MomentRecord& record, int32_t* status,
                            const MomentOptions& options, MomentStep step, void* workspace, bool backwards) {
    HostQueue queue(backwards);
    run_step(input, record, status, options, step, workspace, queue);
}

}  // namespace pyalign
