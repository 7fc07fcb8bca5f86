#include "cross_moments/cross_moments.h"

#include "bindings/moments_record.h"
#include "bindings/tensor.h"

namespace pyalign {
namespace {

std::vector<int64_t> without(const std::vector<int64_t>& shape, int64_t axis) {
    std::vector<int64_t> rest = shape;
    rest.erase(rest.begin() + axis);
    return rest;
}

void check_axis(const Borrowed& tensor, int64_t axis) {
    if (axis < 0 || axis >= tensor.view().dim()) {
        throw py::value_error(tensor.name() + ": given unit axis " + std::to_string(axis) + " for shape " +
                              show(tensor.view().shape) + ", expected an axis of the tensor");
    }
}

bool cross_moments(py::object x, py::object y, py::object mask, int64_t axis_x, int64_t axis_y, bool full,
                   py::object count, py::object mean_a, py::object mean_b, py::object comoment, py::object square_a,
                   py::object square_b, int threads) {
    const auto floats = {DType::f32, DType::f64, DType::bf16, DType::f16};
    const Borrowed a(x, "x", floats), b(y, "y", floats);
    check_axis(a, axis_x);
    check_axis(b, axis_y);
    const int64_t n = a.view().shape[axis_x], m = b.view().shape[axis_y];
    const std::vector<int64_t> samples = without(a.view().shape, axis_x);
    if (without(b.view().shape, axis_y) != samples) {
        throw py::value_error("y: given sample shape " + show(without(b.view().shape, axis_y)) + ", expected " +
                              show(samples));
    }
    MomentInput input{a.view(), b.view(), {}, axis_x, axis_y, full};
    std::optional<Borrowed> kept;
    if (!mask.is_none()) {
        kept.emplace(mask, "mask", std::initializer_list<DType>{DType::boolean});
        input.mask = kept->with_shape(samples).view();
    }
    const py::object* given[] = {&count, &mean_a, &mean_b, &comoment, &square_a, &square_b};
    std::vector<Borrowed> outputs;
    for (size_t k = 0; k < 6; ++k) {
        outputs.emplace_back(*given[k], kRecordNames[k], std::initializer_list<DType>{DType::f64});
    }
    const auto shapes = record_shapes(n, m, full);
    double* data[6];
    for (size_t k = 0; k < 6; ++k) data[k] = outputs[k].with_shape(shapes[k]).contiguous().view().as<double>();
    std::vector<Stretch> used = {stretch_of(a, false), stretch_of(b, false)};
    for (const Borrowed& output : outputs) used.push_back(stretch_of(output, true));
    if (kept) used.push_back(stretch_of(*kept, false));
    expect_apart(std::move(used));

    PythonInterrupt signals;
    bool finite = false;
    threads = checked_threads(threads);
    {
        const py::gil_scoped_release release;
        finite = cross_moments_cpu(input, {data[0], data[1], data[2], data[3], data[4], data[5]}, threads,
                                   signals.interrupt());
    }
    signals.rethrow();
    return finite;
}

}  // namespace

void bind_cross_moments(py::module_& m) {
    m.def("cross_moments", &cross_moments, py::arg("x"), py::arg("y"), py::arg("mask"), py::arg("axis_x"),
          py::arg("axis_y"), py::arg("full"), py::arg("count"), py::arg("mean_a"), py::arg("mean_b"),
          py::arg("comoment"), py::arg("square_a"), py::arg("square_b"), py::arg("threads"),
          "Add samples to the record in place; False, and nothing changed, when a sum is not finite.");
}

}  // namespace pyalign
