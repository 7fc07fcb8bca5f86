// What every CUDA implementation is given besides its tensors: where to run and memory to work in. No CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace pyalign {

// Nothing in csrc allocates device memory or waits for the device: the caller gives a workspace of the size that the
// operation's own function of the shapes asks for, and a stream on which everything is queued.
struct CudaCall {
    int device = 0;
    std::uintptr_t stream = 0;  // a cudaStream_t
    void* workspace = nullptr;  // aligned to kWorkspaceAlignment
    size_t bytes = 0;
};

constexpr size_t kWorkspaceAlignment = 256;

constexpr size_t aligned_up(size_t bytes) {
    return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

// Hands out the parts of a workspace one after another. Without memory it only counts, so that one function both lays
// a workspace out and says how large it must be.
class WorkspaceParts {
  public:
    explicit WorkspaceParts(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    T* take(size_t count) {
        T* part = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
        bytes_ += aligned_up(count * sizeof(T));
        return part;
    }

    size_t bytes() const { return bytes_; }

  private:
    char* memory_;
    size_t bytes_ = 0;
};

// The least compute capability that the kernels run on: 8.0, the first with bfloat16 and asynchronous copies.
constexpr int kLeastCapability = 80;

int cuda_device_count();
// Why kernels cannot run on a device, or "". Without a driver or a device it says so for every number.
std::string cuda_why_not(int device);
std::string cuda_runtime_version();
// Multiprocessors, and bytes of shared memory that one block may have.
std::pair<int, int64_t> cuda_limits(int device);

}  // namespace pyalign
