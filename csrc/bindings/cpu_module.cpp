// The module pyalign._cpu: one function per operation, and what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/tensor.h"
#include "core/simd.h"

namespace pyalign {
namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_VER);
#else
    return "unknown";
#endif
}

py::dict build() {
    py::dict info;
    info["compiler"] = compiler();
    info["simd"] = name_of(simd());
#if defined(PYALIGN_SANITIZE)
    info["sanitizer"] = PYALIGN_SANITIZE;
#endif
    return info;
}

void use_simd(const std::string& path) {
    if (!set_simd(path)) {
        std::string have;
        for (const std::string& name : simd_paths()) have += (have.empty() ? "" : ", ") + name;
        throw py::value_error("path: given '" + path + "', expected one that this machine and build have: " + have);
    }
}

}  // namespace
}  // namespace pyalign

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "The compiled CPU implementations of the engine. Outputs are tensors given by the caller.";
    m.def("build", &pyalign::build, "What the module was compiled with and the SIMD path in use.");
    m.def("simd_paths", &pyalign::simd_paths, "The SIMD paths that this machine and this build have, narrowest first.");
    m.def("use_simd", &pyalign::use_simd, pybind11::arg("path"), "Choose the SIMD path of every operation, for tests.");
    pyalign::bind_cross_moments(m);
    pyalign::bind_linear_assignment(m);
    pyalign::bind_permuted_lerp(m);
}
