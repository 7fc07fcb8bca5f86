// What devices there are, and why kernels cannot run on them.
#include "core/cuda_device.h"

namespace pyalign {
namespace {

__global__ void nothing() {}

std::string version_of(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// A module built for a list of one's own may have no code for this device, and a driver may not read its intermediate
// code.
std::string why_no_code(int device) {
    try {
        const OnDevice current(device);
        cudaFuncAttributes attributes{};
        check_cuda(cudaFuncGetAttributes(&attributes, nothing), "cudaFuncGetAttributes");
    } catch (const std::runtime_error& failure) {
        return failure.what();
    }
    return "";
}

}  // namespace

std::string cuda_runtime_version() {
    return version_of(CUDART_VERSION);
}

int cuda_device_count() {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    cudaGetLastError();
    return code == cudaSuccess ? count : 0;
}

std::pair<int, int64_t> cuda_limits(int device) {
    int processors = 0, shared = 0;
    check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    return {processors, shared};
}

std::string cuda_why_not(int device) {
    int driver = 0, count = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return "no CUDA driver is installed";
    const cudaError_t code = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (code == cudaErrorInsufficientDriver) {
        return "the CUDA driver knows CUDA " + version_of(driver) + ", pyalign._cuda was built with CUDA " +
               cuda_runtime_version() + ": update the driver";
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) return "there is no CUDA device";
    if (code != cudaSuccess) return std::string("the CUDA driver answers: ") + cudaGetErrorString(code);
    if (device < 0 || device >= count) {
        return "there is no CUDA device " + std::to_string(device) + ", only " + std::to_string(count);
    }
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    if (major * 10 + minor < kLeastCapability) {
        return "device " + std::to_string(device) + " has compute capability " + std::to_string(major) + "." +
               std::to_string(minor) + ", the kernels need " + std::to_string(kLeastCapability / 10) + "." +
               std::to_string(kLeastCapability % 10);
    }
    const std::string reason = why_no_code(device);
    if (!reason.empty()) {
        return "device " + std::to_string(device) + " of compute capability " + std::to_string(major) + "." +
               std::to_string(minor) + " cannot run the code in pyalign._cuda (" + reason + "), which was built for " +
               PYALIGN_CUDA_ARCHITECTURES + ": build it with -C cmake.define.PYALIGN_CUDA_ARCHITECTURES=SHORT";
    }
    return "";
}

}  // namespace pyalign
