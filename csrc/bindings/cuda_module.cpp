// The module pyalign._cuda: one function per operation, what was built, and why it cannot run here.
#include "bindings/cuda_module.h"

#include <pybind11/stl.h>

namespace pyalign {
namespace {

// In a function, since binding files are initialised in no particular order.
std::vector<void (*)(py::module_&)>& bindings() {
    static std::vector<void (*)(py::module_&)> all;
    return all;
}

py::dict build() {
    py::dict info;
    info["compiler"] = PYALIGN_NVCC;
    info["architectures"] = PYALIGN_CUDA_ARCHITECTURES;
    info["runtime"] = cuda_runtime_version();
    return info;
}

}  // namespace

CudaBinding::CudaBinding(void (*bind)(py::module_&)) {
    bindings().push_back(bind);
}

CudaCall cuda_call(int device, std::uintptr_t stream, const Borrowed& workspace, size_t wanted) {
    const TensorView& view = workspace.view();
    if (static_cast<size_t>(view.size()) < wanted) {
        throw py::value_error(workspace.name() + ": given " + std::to_string(view.size()) + " bytes, expected " +
                              std::to_string(wanted));
    }
    if (wanted > 0 && reinterpret_cast<std::uintptr_t>(view.data) % kWorkspaceAlignment != 0) {
        throw py::value_error(workspace.name() + ": given memory that does not start at a multiple of " +
                              std::to_string(kWorkspaceAlignment) + " bytes, as torch.empty gives it");
    }
    return {device, stream, view.data, static_cast<size_t>(view.size())};
}

}  // namespace pyalign

PYBIND11_MODULE(_cuda, m) {
    m.doc() =
        "The compiled CUDA implementations of the engine. Outputs and workspaces are tensors given by the caller.";
    m.def("build", &pyalign::build, "What the module was compiled with, and for which architectures.");
    m.def("device_count", &pyalign::cuda_device_count, "The number of CUDA devices; 0 without a driver.");
    m.def(
        "why_not", &pyalign::cuda_why_not, pybind11::arg("device"),
        "Why kernels cannot run on this device: no driver, no device, too low a compute capability; or an empty text.");
    m.def("limits", &pyalign::cuda_limits, pybind11::arg("device"),
          "Multiprocessors of a device, and bytes of shared memory that one block may have there.");
    for (auto* bind : pyalign::bindings()) bind(m);
}
