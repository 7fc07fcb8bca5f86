// For CUDA sources: errors of the runtime as exceptions, and the device that launches go to.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/cuda_call.h"

namespace pyalign {

inline void check_cuda(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // it is told once
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

// After every launch; what went wrong in a kernel itself shows only where the caller next waits for the device.
inline void check_launch(const char* what) {
    check_cuda(cudaGetLastError(), what);
}

// Makes a device current for as long as it lives. An error that an earlier call left behind is not taken for ours.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
        cudaGetLastError();
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

inline cudaStream_t stream_of(const CudaCall& call) {
    return reinterpret_cast<cudaStream_t>(call.stream);
}

}  // namespace pyalign
