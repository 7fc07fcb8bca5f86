#include "permuted_lerp/permuted_lerp.h"

#include <pybind11/stl.h>

#include "bindings/tensor.h"

namespace pyalign {
namespace {

AxisPermutation read_perm(const std::string& name, py::handle perm, int64_t extent, std::vector<Borrowed>& held) {
    held.emplace_back(perm, name, std::initializer_list<DType>{DType::i64});
    const TensorView& view = held.back().with_dim(1).contiguous().view();
    const int64_t count = view.shape[0];
    if (count == 0 ? extent != 0 : extent % count != 0) {
        throw py::value_error(name + ": given " + std::to_string(count) +
                              " indices, expected a number that divides the axis of " + std::to_string(extent));
    }
    std::vector<bool> seen(static_cast<size_t>(count), false);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = view.as<int64_t>()[i];
        if (index < 0 || index >= count) {
            throw py::value_error(name + ": given index " + std::to_string(index) + ", expected 0 to " +
                                  std::to_string(count - 1));
        }
        if (seen[index]) {
            throw py::value_error(name + ": given index " + std::to_string(index) + " twice, expected a permutation");
        }
        seen[index] = true;
    }
    return {view.as<int64_t>(), count};
}

// The tensors, weights and perms of one call, checked against the tensor they are combined in or with.
struct Terms {
    std::vector<Borrowed> tensors, perms;
    std::vector<PermutedTerm> listed;
};

Terms read_terms(const TensorView& target, py::list tensors, const std::vector<double>& weights, py::list perms) {
    if (tensors.size() != weights.size() || tensors.size() != perms.size()) {
        throw py::value_error("given " + std::to_string(tensors.size()) + " tensors, " +
                              std::to_string(weights.size()) + " weights and " + std::to_string(perms.size()) +
                              " lists of perms, expected equally many");
    }
    Terms terms;
    for (size_t k = 0; k < tensors.size(); ++k) {
        const std::string name = "tensors[" + std::to_string(k) + "]";
        terms.tensors.emplace_back(tensors[k], name, std::initializer_list<DType>{target.dtype});
        PermutedTerm term{terms.tensors.back().with_shape(target.shape).view(), weights[k], {}};
        if (!py::isinstance<py::sequence>(perms[k]) || static_cast<int64_t>(py::len(perms[k])) != target.dim()) {
            throw py::value_error("perms[" + std::to_string(k) + "]: expected a sequence of " +
                                  std::to_string(target.dim()) + " entries, one per axis");
        }
        const auto axes = py::reinterpret_borrow<py::sequence>(perms[k]);
        for (int64_t d = 0; d < target.dim(); ++d) {
            const py::object perm = axes[static_cast<size_t>(d)];
            const std::string axis = "perms[" + std::to_string(k) + "][" + std::to_string(d) + "]";
            term.perms.push_back(perm.is_none() ? AxisPermutation{}
                                                : read_perm(axis, perm, target.shape[d], terms.perms));
        }
        terms.listed.push_back(std::move(term));
    }
    return terms;
}

const auto kFloats = {DType::f32, DType::f64, DType::bf16, DType::f16};

void permuted_sum(py::object out, py::list tensors, std::vector<double> weights, py::list perms, int threads) {
    Borrowed result(out, "out", kFloats);
    const TensorView target = result.distinct().view();
    const Terms terms = read_terms(target, tensors, weights, perms);
    std::vector<Stretch> used = {stretch_of(result, true)};
    for (const Borrowed& perm : terms.perms) used.push_back(stretch_of(perm, false));
    expect_apart(std::move(used));
    PythonInterrupt signals;
    threads = checked_threads(threads);
    {
        const py::gil_scoped_release release;
        permuted_sum_cpu(target, terms.listed, threads, signals.interrupt());
    }
    signals.rethrow();
}

std::vector<double> permuted_dots(py::object with, py::list tensors, py::list perms, int threads) {
    const Borrowed factor(with, "with", kFloats);
    const std::vector<double> ones(tensors.size(), 1.0);
    const Terms terms = read_terms(factor.view(), tensors, ones, perms);
    std::vector<double> products;
    PythonInterrupt signals;
    threads = checked_threads(threads);
    {
        const py::gil_scoped_release release;
        products = permuted_dots_cpu(factor.view(), terms.listed, threads, signals.interrupt());
    }
    signals.rethrow();
    return products;
}

}  // namespace

void bind_permuted_lerp(py::module_& m) {
    m.def("permuted_sum", &permuted_sum, py::arg("out"), py::arg("tensors"), py::arg("weights"), py::arg("perms"),
          py::arg("threads"),
          "Write the weighted sum of the permuted tensors to out; terms of weight zero are not read.");
    m.def("permuted_dots", &permuted_dots, py::arg("with_tensor"), py::arg("tensors"), py::arg("perms"),
          py::arg("threads"), "The sum over all entries of a tensor times each permuted tensor.");
}

}  // namespace pyalign
