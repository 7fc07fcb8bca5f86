#include "bindings/tensor.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "bindings/dlpack.h"

namespace pyalign {
namespace {

std::optional<DType> dtype_of(DLDataType type) {
    enum Code { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };
    if (type.lanes != 1) return std::nullopt;
    switch (type.code * 256 + type.bits) {
        case kFloat * 256 + 32:
            return DType::f32;
        case kFloat * 256 + 64:
            return DType::f64;
        case kFloat * 256 + 16:
            return DType::f16;
        case kBFloat * 256 + 16:
            return DType::bf16;
        case kInt * 256 + 8:
            return DType::i8;
        case kInt * 256 + 16:
            return DType::i16;
        case kInt * 256 + 32:
            return DType::i32;
        case kInt * 256 + 64:
            return DType::i64;
        case kUInt * 256 + 8:
            return DType::u8;
        case kBool * 256 + 8:
            return DType::boolean;
        default:
            return std::nullopt;
    }
}

int64_t item_size(DType dtype) {
    constexpr int64_t sizes[] = {4, 8, 2, 2, 1, 1, 2, 4, 8, 1};
    return sizes[static_cast<int>(dtype)];
}

std::string show(Place place) {
    if (place.type == 1) return "cpu";
    if (place.type == 2) return "cuda:" + std::to_string(place.device);
    return "DLPack device type " + std::to_string(place.type);
}

void expect_place(const std::string& name, Place given, Place expected) {
    const bool same = given.type == expected.type && (given.type == 1 || given.device == expected.device);
    if (!same) throw py::value_error(name + ": given a tensor on " + show(given) + ", expected " + show(expected));
}

// The exchange of a type; asked for once per type, of which in practice there is one, kept alive here.
const DLPackExchangeAPI* exchange_of(PyTypeObject* type) {
    static PyTypeObject* known = nullptr;
    static const DLPackExchangeAPI* exchange = nullptr;
    if (type == known) return exchange;
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    const auto* found =
        capsule && PyCapsule_IsValid(capsule, "dlpack_exchange_api")
            ? static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"))
            : nullptr;
    PyErr_Clear();
    if (found && (found->version.major != 1 || !found->dltensor_from_py_object_no_sync)) found = nullptr;
    if (known) {
        Py_XDECREF(capsule);
        return found;
    }
    // The capsule stays too: it owns what it points to.
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    known = type, exchange = found;
    return found;
}

}  // namespace

std::optional<Glance> glance_at(PyObject* object) {
    const DLPackExchangeAPI* exchange = exchange_of(Py_TYPE(object));
    if (!exchange) return std::nullopt;
    DLTensor tensor{};
    if (exchange->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
        PyErr_Clear();
        return std::nullopt;
    }
    const std::optional<DType> dtype = dtype_of(tensor.dtype);
    if (tensor.device.device_type != Place{}.type || tensor.ndim != 2 || !dtype || !tensor.strides) return std::nullopt;
    Glance seen{static_cast<char*>(tensor.data) + tensor.byte_offset,
                *dtype,
                {tensor.shape[0], tensor.shape[1]},
                {tensor.strides[0], tensor.strides[1]}};
    if (!tensor.data || reinterpret_cast<uintptr_t>(seen.data) % static_cast<uintptr_t>(item_size(*dtype)) != 0) {
        return std::nullopt;
    }
    return seen;
}

const char* name_of(DType dtype) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "int8",
                                     "uint8",   "int16",   "int32",   "int64",    "bool"};
    return names[static_cast<int>(dtype)];
}

std::string show(const std::vector<int64_t>& shape) {
    std::string text = "(";
    for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

Borrowed::Borrowed(py::handle object, const std::string& name, std::initializer_list<DType> allowed, Place place)
    : name_(name) {
    py::object exported = py::reinterpret_borrow<py::object>(object);
    if (!PyCapsule_IsValid(object.ptr(), "dltensor")) {
        if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) {
            throw py::type_error(name + ": given " + std::string(py::str(py::type::of(object))) +
                                 ", expected a tensor, or a DLPack capsule that was not used before");
        }
        const py::tuple device = object.attr("__dlpack_device__")();
        expect_place(name, {py::int_(device[0]), py::int_(device[1])}, place);
        exported = object.attr("__dlpack__")();
    }
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(exported.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    if (PyCapsule_SetName(exported.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    owner_ = std::shared_ptr<void>(managed, [](void* held) {
        auto* tensor = static_cast<DLManagedTensor*>(held);
        if (tensor->deleter) tensor->deleter(tensor);
    });

    const DLTensor& tensor = managed->dl_tensor;
    expect_place(name, {tensor.device.device_type, tensor.device.device_id}, place);
    const std::optional<DType> dtype = dtype_of(tensor.dtype);
    if (!dtype || std::find(allowed.begin(), allowed.end(), *dtype) == allowed.end()) {
        std::string expected;
        for (DType option : allowed) expected += (expected.empty() ? "" : ", ") + std::string(name_of(option));
        const std::string given = dtype ? name_of(*dtype) : "another dtype";
        throw py::type_error(name + ": given " + given + ", expected " + expected);
    }
    view_.dtype = *dtype;
    view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view_.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
    if (tensor.strides) {
        view_.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
    } else {
        view_.strides.assign(tensor.ndim, 1);
        for (int d = tensor.ndim - 2; d >= 0; --d) view_.strides[d] = view_.strides[d + 1] * view_.shape[d + 1];
    }
    if (!tensor.data && view_.size() > 0)
        throw py::value_error(name + ": given a tensor without memory, expected one with data");
    const int64_t item = item_size(view_.dtype);
    if (view_.size() > 0 && reinterpret_cast<uintptr_t>(view_.data) % static_cast<uintptr_t>(item) != 0) {
        throw py::value_error(name + ": given memory that does not start at a multiple of " + std::to_string(item) +
                              " bytes, expected aligned entries, as .clone() makes them");
    }
}

Borrowed& Borrowed::with_shape(const std::vector<int64_t>& expected) {
    if (view_.shape != expected) {
        throw py::value_error(name_ + ": given shape " + show(view_.shape) + ", expected " + show(expected));
    }
    return *this;
}

Borrowed& Borrowed::with_dim(int64_t expected) {
    if (view_.dim() != expected) {
        throw py::value_error(name_ + ": given shape " + show(view_.shape) + ", expected " + std::to_string(expected) +
                              " dimensions");
    }
    return *this;
}

Borrowed& Borrowed::contiguous() {
    int64_t stride = 1;
    for (int64_t d = view_.dim() - 1; d >= 0; --d) {
        if (view_.size() > 0 && view_.shape[d] > 1 && view_.strides[d] != stride) {
            throw py::value_error(name_ + ": given strides " + show(view_.strides) + " for shape " + show(view_.shape) +
                                  ", expected a contiguous tensor");
        }
        stride *= view_.shape[d];
    }
    return *this;
}

Borrowed& Borrowed::distinct() {
    std::vector<std::pair<int64_t, int64_t>> axes;
    for (int64_t d = 0; d < view_.dim(); ++d) {
        if (view_.shape[d] > 1) axes.emplace_back(std::abs(view_.strides[d]), view_.shape[d]);
    }
    std::sort(axes.begin(), axes.end());
    int64_t reach = 0;
    for (const auto& [stride, extent] : axes) {
        if (view_.size() > 0 && stride <= reach) {
            throw py::value_error(name_ + ": given strides " + show(view_.strides) + " for shape " + show(view_.shape) +
                                  ", expected entries that do not overlap, since they are written");
        }
        reach += stride * (extent - 1);
    }
    return *this;
}

Stretch stretch_of(const Borrowed& tensor, bool written) {
    const TensorView& view = tensor.view();
    const int64_t item = item_size(view.dtype);
    const char* data = view.as<char>();
    if (view.size() == 0) return {tensor.name(), data, data, written};
    int64_t low = 0, high = 0;
    for (int64_t d = 0; d < view.dim(); ++d) {
        const int64_t reach = (view.shape[d] - 1) * view.strides[d];
        (reach < 0 ? low : high) += reach;
    }
    return {tensor.name(), data + low * item, data + (high + 1) * item, written};
}

void expect_apart(std::vector<Stretch> stretches) {
    std::sort(stretches.begin(), stretches.end(), [](const Stretch& p, const Stretch& q) { return p.begin < q.begin; });
    const Stretch *furthest = nullptr, *furthest_written = nullptr;
    for (const Stretch& stretch : stretches) {
        if (stretch.begin == stretch.end) continue;
        const Stretch* earlier = stretch.written ? furthest : furthest_written;
        if (earlier && earlier->end > stretch.begin) {
            const auto [first, second] =
                stretch.written ? std::pair(stretch.name, earlier->name) : std::pair(earlier->name, stretch.name);
            throw py::value_error(std::string(first) + ": given memory that " + std::string(second) +
                                  " has too, expected memory of its own, since it is written");
        }
        if (!furthest || stretch.end > furthest->end) furthest = &stretch;
        if (stretch.written && (!furthest_written || stretch.end > furthest_written->end)) furthest_written = &stretch;
    }
}

PythonInterrupt::PythonInterrupt()
    : failure_(std::make_shared<std::optional<py::error_already_set>>()), interrupt_([failure = failure_] {
          const py::gil_scoped_acquire gil;
          if (PyErr_CheckSignals() == 0) return false;
          failure->emplace();
          return true;
      }) {}

void PythonInterrupt::rethrow() const {
    if (failure_->has_value()) throw py::error_already_set(**failure_);
}

int checked_threads(int threads) {
    if (threads < 1) throw py::value_error("threads: given " + std::to_string(threads) + ", expected at least 1");
    return std::min(threads, 1024);
}

}  // namespace pyalign
