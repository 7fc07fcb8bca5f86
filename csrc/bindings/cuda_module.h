// How an operation joins pyalign._cuda: its binding file holds one `const CudaBinding name(&bind)` and is compiled in.
#pragma once

#include "bindings/tensor.h"
#include "core/cuda_call.h"

namespace pyalign {

class CudaBinding {
  public:
    explicit CudaBinding(void (*bind)(py::module_&));
};

// The call's device, stream and workspace: uint8 on that device, as many bytes as wanted at least.
CudaCall cuda_call(int device, std::uintptr_t stream, const Borrowed& workspace, size_t wanted);

}  // namespace pyalign
