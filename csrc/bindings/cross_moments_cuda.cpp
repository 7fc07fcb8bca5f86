#include "cross_moments/cross_moments_cuda.h"

#include <pybind11/stl.h>

#include "bindings/cuda_module.h"
#include "bindings/moments_record.h"

namespace pyalign {
namespace {

// The tensors of one call, checked as those of the CPU are, all at one place.
class Call {
  public:
    Call(const py::object& x, const py::object& y, const py::object& mask, int64_t axis_x, int64_t axis_y, bool full,
         Place place)
        : place_(place), x_(x, "x", kFloats, place), y_(y, "y", kFloats, place) {
        const std::vector<int64_t> samples = sample_shape(x_, axis_x), of_y = sample_shape(y_, axis_y);
        if (of_y != samples) {
            throw py::value_error("y: given sample shape " + show(of_y) + ", expected " + show(samples));
        }
        input = {x_.view(), y_.view(), {}, axis_x, axis_y, full};
        if (input.x.size() == 0 || input.y.size() == 0) {
            throw py::value_error("x, y: given " + show(input.x.shape) + " and " + show(input.y.shape) +
                                  ", expected at least one unit and one sample");
        }
        if (!mask.is_none()) {
            mask_.emplace(mask, "mask", std::initializer_list<DType>{DType::boolean}, place);
            input.mask = mask_->with_shape(samples).view();
        }
    }

    // Keeps the record's tensors, and gives their memory.
    MomentRecord record(const py::sequence& tensors) {
        if (py::len(tensors) != 6) {
            throw py::value_error("record: given " + std::to_string(py::len(tensors)) + " tensors, expected 6");
        }
        const int64_t n = input.x.shape[input.axis_x], m = input.y.shape[input.axis_y];
        const auto shapes = record_shapes(n, m, input.full);
        double* data[6];
        for (size_t k = 0; k < 6; ++k) {
            outputs_.emplace_back(tensors[k], kRecordNames[k], std::initializer_list<DType>{DType::f64}, place_);
            data[k] = outputs_.back().with_shape(shapes[k]).contiguous().view().as<double>();
        }
        return {data[0], data[1], data[2], data[3], data[4], data[5]};
    }

    int32_t* status(const py::object& tensor) {
        outputs_.emplace_back(tensor, "status", std::initializer_list<DType>{DType::i32}, place_);
        return outputs_.back().with_shape({2}).contiguous().view().as<int32_t>();
    }

    const Borrowed& workspace(const py::object& tensor) {
        outputs_.emplace_back(tensor, "workspace", std::initializer_list<DType>{DType::u8}, place_);
        return outputs_.back().with_dim(1).contiguous();
    }

    // What is written must be no other tensor's memory.
    void expect_all_apart() const {
        std::vector<Stretch> used = {stretch_of(x_, false), stretch_of(y_, false)};
        for (const Borrowed& output : outputs_) used.push_back(stretch_of(output, true));
        if (mask_) used.push_back(stretch_of(*mask_, false));
        expect_apart(std::move(used));
    }

    MomentInput input;

  private:
    static constexpr std::initializer_list<DType> kFloats = {DType::f32, DType::f64, DType::bf16, DType::f16};

    static std::vector<int64_t> sample_shape(const Borrowed& tensor, int64_t axis) {
        if (axis < 0 || axis >= tensor.view().dim()) {
            throw py::value_error(tensor.name() + ": given unit axis " + std::to_string(axis) + " for shape " +
                                  show(tensor.view().shape) + ", expected an axis of the tensor");
        }
        std::vector<int64_t> rest = tensor.view().shape;
        rest.erase(rest.begin() + axis);
        return rest;
    }

    Place place_;
    Borrowed x_, y_;
    std::optional<Borrowed> mask_;
    std::vector<Borrowed> outputs_;
};

MomentOptions options_of(bool allow_tf32, int processors, int64_t shared, int64_t most_partial) {
    if (processors < 1 || shared < 0 || most_partial < 0) {
        throw py::value_error("processors, shared, most_partial: given " + std::to_string(processors) + ", " +
                              std::to_string(shared) + ", " + std::to_string(most_partial) +
                              ", expected at least 1, 0 and 0");
    }
    return {allow_tf32, processors, shared, most_partial};
}

MomentStep step_of(const std::string& step) {
    if (step == "few") return MomentStep::few;
    if (step == "every") return MomentStep::every;
    if (step == "commit") return MomentStep::commit;
    throw py::value_error("step: given '" + step + "', expected 'few', 'every' or 'commit'");
}

size_t workspace_size(py::object x, py::object y, int64_t axis_x, int64_t axis_y, bool full, int device, int processors,
                      int64_t shared, int64_t most_partial) {
    const Call call(x, y, py::none(), axis_x, axis_y, full, device < 0 ? Place{} : Place::cuda(device));
    return cross_moments_workspace(call.input, options_of(false, processors, shared, most_partial));
}

void run(py::object x, py::object y, py::object mask, int64_t axis_x, int64_t axis_y, bool full, py::sequence record,
         py::object status, const std::string& step, bool allow_tf32, int processors, int64_t shared,
         int64_t most_partial, py::object workspace, int device, std::uintptr_t stream) {
    Call call(x, y, mask, axis_x, axis_y, full, Place::cuda(device));
    const MomentRecord into = call.record(record);
    int32_t* const found = call.status(status);
    const MomentOptions options = options_of(allow_tf32, processors, shared, most_partial);
    const CudaCall where =
        cuda_call(device, stream, call.workspace(workspace), cross_moments_workspace(call.input, options));
    call.expect_all_apart();
    const MomentStep chosen = step_of(step);
    const py::gil_scoped_release release;
    cross_moments_cuda(call.input, into, found, options, chosen, where);
}

void emulate(py::object x, py::object y, py::object mask, int64_t axis_x, int64_t axis_y, bool full,
             py::sequence record, py::object status, const std::string& step, bool allow_tf32, int processors,
             int64_t shared, int64_t most_partial, py::object workspace, bool backwards) {
    Call call(x, y, mask, axis_x, axis_y, full, Place{});
    const MomentRecord into = call.record(record);
    int32_t* const found = call.status(status);
    const MomentOptions options = options_of(allow_tf32, processors, shared, most_partial);
    const CudaCall where = cuda_call(0, 0, call.workspace(workspace), cross_moments_workspace(call.input, options));
    call.expect_all_apart();
    const MomentStep chosen = step_of(step);
    const py::gil_scoped_release release;
    cross_moments_emulated(call.input, into, found, options, chosen, where.workspace, backwards);
}

void bind(py::module_& m) {
    m.def("cross_moments_workspace", &workspace_size, py::arg("x"), py::arg("y"), py::arg("axis_x"), py::arg("axis_y"),
          py::arg("full"), py::arg("device"), py::arg("processors"), py::arg("shared"), py::arg("most_partial"),
          "Bytes of workspace that one call needs; device -1 stands for tensors on the CPU.");
    m.def("cross_moments", &run, py::arg("x"), py::arg("y"), py::arg("mask"), py::arg("axis_x"), py::arg("axis_y"),
          py::arg("full"), py::arg("record"), py::arg("status"), py::arg("step"), py::arg("allow_tf32"),
          py::arg("processors"), py::arg("shared"), py::arg("most_partial"), py::arg("workspace"), py::arg("device"),
          py::arg("stream"), "Queue one step: 'few' or 'every' sums into the workspace, 'commit' adds to the record.");
    m.def("emulate_cross_moments", &emulate, py::arg("x"), py::arg("y"), py::arg("mask"), py::arg("axis_x"),
          py::arg("axis_y"), py::arg("full"), py::arg("record"), py::arg("status"), py::arg("step"),
          py::arg("allow_tf32"), py::arg("processors"), py::arg("shared"), py::arg("most_partial"),
          py::arg("workspace"), py::arg("backwards"), "Run the kernels of one step on the host, for tests.");
}

const CudaBinding binding(&bind);

}  // namespace
}  // namespace pyalign
