#include "linear_assignment/linear_assignment.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "bindings/parallel_problems.h"
#include "linear_assignment/parallel_host.h"

namespace pyalign {
namespace {

using Fields = std::vector<Borrowed>;

constexpr std::initializer_list<DType> kCosts = {DType::f32, DType::f64, DType::i8, DType::u8,
                                                 DType::i16, DType::i32, DType::i64};

void expect_indexable(const std::string& name, int64_t n, int64_t m) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max() / 64;
    if (n > most || m > most) {
        throw py::value_error(name + ": given " + std::to_string(n) + " rows and " + std::to_string(m) +
                              " columns, expected at most " + std::to_string(most));
    }
}

AssignmentBatch costs_of(const TensorView& cost, const std::string& name) {
    if (cost.dim() != 2 && cost.dim() != 3) {
        throw py::value_error(name + ": given shape " + show(cost.shape) + ", expected 2 or 3 dimensions");
    }
    const bool single = cost.dim() == 2;
    AssignmentBatch batch{};
    batch.cost = cost.data, batch.dtype = cost.dtype;
    batch.b = single ? 1 : cost.shape[0];
    batch.n = cost.shape[single ? 0 : 1], batch.m = cost.shape[single ? 1 : 2];
    for (int d = 0; d < 3; ++d) batch.strides[d] = single ? (d ? cost.strides[d - 1] : 0) : cost.strides[d];
    expect_indexable(name, batch.n, batch.m);
    return batch;
}

AssignmentBatch read_batch(const std::string& name, py::handle cost, py::handle start, py::handle answer,
                           Fields& held) {
    held.emplace_back(cost, name, kCosts);
    AssignmentBatch batch = costs_of(held.back().view(), name);
    const bool single = held.back().view().dim() == 2;
    const int64_t b = batch.b, n = batch.n, m = batch.m;
    const std::vector<int64_t> rows = single ? std::vector<int64_t>{n} : std::vector<int64_t>{b, n},
                               columns = single ? std::vector<int64_t>{m} : std::vector<int64_t>{b, m},
                               problems = single ? std::vector<int64_t>{} : std::vector<int64_t>{b};
    const auto field = [&](py::handle from, size_t index, const char* what, DType dtype,
                           const std::vector<int64_t>& shape) {
        held.emplace_back(py::reinterpret_borrow<py::sequence>(from)[index], name + " " + what,
                          std::initializer_list<DType>{dtype});
        return held.back().with_shape(shape).contiguous().view();
    };
    const auto expect_fields = [&](py::handle sequence, size_t size, const char* what) {
        if (!py::isinstance<py::sequence>(sequence) || py::len(sequence) != size) {
            throw py::type_error(name + " " + what + ": expected a sequence of " + std::to_string(size) + " tensors");
        }
    };
    expect_fields(answer, 5, "answer");
    batch.perm = field(answer, 0, "perm", DType::i64, rows).as<int64_t>();
    batch.row_duals = field(answer, 1, "row_duals", DType::f64, rows).as<double>();
    batch.col_duals = field(answer, 2, "col_duals", DType::f64, columns).as<double>();
    batch.gap = field(answer, 3, "gap", DType::f64, problems).as<double>();
    batch.objective = field(answer, 4, "objective", DType::f64, problems).as<double>();
    if (!start.is_none()) {
        expect_fields(start, 3, "start");
        batch.start_rows = field(start, 0, "start row_duals", DType::f64, rows).as<double>();
        batch.start_columns = field(start, 1, "start col_duals", DType::f64, columns).as<double>();
        batch.start_perm = field(start, 2, "start perm", DType::i64, rows).as<int64_t>();
    }
    return batch;
}

AssignmentFailure solve(const AssignmentBatch* batches, size_t count, bool maximize, int threads) {
    PythonInterrupt signals;
    AssignmentFailure failure;
    threads = checked_threads(threads);
    {
        const py::gil_scoped_release release;
        failure = linear_assignment_cpu(batches, count, maximize, threads, signals.interrupt());
    }
    signals.rethrow();
    return failure;
}

py::object outcome_of(const AssignmentFailure& failure) {
    if (failure.outcome == AssignmentOutcome::solved) return py::none();
    return py::make_tuple(static_cast<int>(failure.outcome), failure.batch, failure.problem, failure.row,
                          failure.column);
}

py::object linear_assignment(py::list costs, bool maximize, py::list start, py::list answers, int threads) {
    if (costs.size() != answers.size() || (start.size() != 0 && start.size() != costs.size())) {
        throw py::value_error("given " + std::to_string(costs.size()) + " costs, " + std::to_string(start.size()) +
                              " starts and " + std::to_string(answers.size()) +
                              " answers, expected equally many (or no start)");
    }
    Fields held;
    std::vector<AssignmentBatch> batches;
    for (size_t k = 0; k < costs.size(); ++k) {
        const py::object earlier = start.size() ? py::object(start[k]) : py::object(py::none());
        batches.push_back(read_batch("costs[" + std::to_string(k) + "]", costs[k], earlier, answers[k], held));
    }
    return outcome_of(solve(batches.data(), batches.size(), maximize, threads));
}

// An uninitialised vector; what pybind11 does beside this takes as long as a small problem.
template <typename T>
py::array new_vector(int64_t size) {
    static const py::dtype dtype = py::dtype::of<T>();
    const auto& numpy = py::detail::npy_api::get();
    const Py_intptr_t shape[] = {static_cast<Py_intptr_t>(size)};
    Py_INCREF(dtype.ptr());
    PyObject* array =
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype.ptr(), 1, shape, nullptr, nullptr, 0, nullptr);
    if (!array) throw py::error_already_set();
    return py::reinterpret_steal<py::array>(array);
}

// What a small problem costs is mostly its outputs, so one matrix has one: the permutation, whose integers lie in the
// first n places, then row duals, column duals, gap and objective, at last n, an integer again.
int64_t answer_size(const AssignmentBatch& batch) {
    return 2 * batch.n + batch.m + 3;
}

void place_answer(AssignmentBatch& batch, double* answer) {
    batch.perm = reinterpret_cast<int64_t*>(answer);
    batch.row_duals = answer + batch.n;
    batch.col_duals = batch.row_duals + batch.n;
    batch.gap = batch.col_duals + batch.m;
    batch.objective = batch.gap + 1;
    std::memcpy(batch.objective + 1, &batch.n, sizeof(batch.n));
}

void read_start(py::handle start, AssignmentBatch& batch) {
    if (start.is_none()) return;
    if (!py::isinstance<py::array_t<double, py::array::c_style>>(start)) {
        throw py::type_error("start: expected a contiguous array of the dtype that assign_matrix gives");
    }
    const auto values = py::reinterpret_borrow<py::array_t<double, py::array::c_style>>(start);
    const int64_t size = answer_size(batch);
    if (values.ndim() != 1 || values.shape(0) != size ||
        std::memcmp(values.data() + size - 1, &batch.n, sizeof(batch.n)) != 0) {
        throw py::value_error("start: expected the " + std::to_string(size) + " numbers of an answer for " +
                              std::to_string(batch.n) + " rows");
    }
    batch.start_perm = reinterpret_cast<const int64_t*>(values.data());
    batch.start_rows = values.data() + batch.n;
    batch.start_columns = batch.start_rows + batch.n;
}

py::object assign_matrix(py::handle cost, bool maximize, py::handle start, int threads) {
    const Borrowed held(cost, "cost", kCosts);
    AssignmentBatch batch = costs_of(held.view(), "cost");
    if (held.view().dim() != 2) {
        throw py::value_error("cost: given shape " + show(held.view().shape) + ", expected 2 dimensions");
    }
    read_start(start, batch);
    py::array answer = new_vector<double>(answer_size(batch));
    place_answer(batch, static_cast<double*>(answer.mutable_data()));
    const AssignmentFailure failure = solve(&batch, 1, maximize, threads);
    return failure.outcome == AssignmentOutcome::solved ? py::object(std::move(answer)) : outcome_of(failure);
}

// Problems of so many entries are over before anyone could miss the GIL or press Ctrl-C.
constexpr int64_t kSmallEntries = int64_t{1} << 15;

AssignmentFailure solve_small(const AssignmentBatch& batch, bool maximize) {
    Interrupt never(nullptr);
    return linear_assignment_cpu(&batch, 1, maximize, 1, never);
}

// Whether torch has still to negate what lies in memory, of which DLPack does not tell.
bool negation_pending(py::handle tensor) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), is_neg));
    if (!answer) PyErr_Clear();
    return answer.ptr() != Py_False;
}

py::object assign_small(py::handle cost, bool maximize, py::handle start) {
    const std::optional<Glance> seen = glance_at(cost.ptr());
    if (!seen || negation_pending(cost) || std::find(kCosts.begin(), kCosts.end(), seen->dtype) == kCosts.end())
        return py::none();
    AssignmentBatch batch{};
    batch.cost = seen->data, batch.dtype = seen->dtype;
    batch.b = 1, batch.n = seen->shape[0], batch.m = seen->shape[1];
    if (batch.n > kSmallEntries || batch.m > kSmallEntries || batch.n * batch.m > kSmallEntries) return py::none();
    batch.strides[1] = seen->strides[0], batch.strides[2] = seen->strides[1];
    read_start(start, batch);
    py::array answer = new_vector<double>(answer_size(batch));
    place_answer(batch, static_cast<double*>(answer.mutable_data()));
    const AssignmentFailure failure = solve_small(batch, maximize);
    return failure.outcome == AssignmentOutcome::solved ? py::object(std::move(answer)) : outcome_of(failure);
}

std::optional<DType> dtype_of(const py::array& array) {
    const py::dtype dtype = array.dtype();
    const char order = dtype.byteorder();
    if (order != '=' && order != '|') return std::nullopt;
    switch (dtype.kind() * 16 + dtype.itemsize()) {
        case 'f' * 16 + 8:
            return DType::f64;
        case 'f' * 16 + 4:
            return DType::f32;
        case 'i' * 16 + 8:
            return DType::i64;
        case 'i' * 16 + 4:
            return DType::i32;
        case 'i' * 16 + 2:
            return DType::i16;
        case 'i' * 16 + 1:
            return DType::i8;
        case 'u' * 16 + 1:
            return DType::u8;
        default:
            return std::nullopt;
    }
}

py::object pair_of(py::array rows, py::array columns) {
    PyObject* pair = PyTuple_Pack(2, rows.ptr(), columns.ptr());
    if (!pair) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(pair);
}

// The pairs of one numpy matrix; None where the array is of another kind, or the problem has no answer.
py::object assign_array(py::handle cost, bool maximize, int threads) {
    if (!py::isinstance<py::array>(cost)) return py::none();
    const auto array = py::reinterpret_borrow<py::array>(cost);
    const std::optional<DType> dtype = dtype_of(array);
    if (!dtype || array.ndim() != 2 || !(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return py::none();
    AssignmentBatch batch{};
    batch.cost = array.data(), batch.dtype = *dtype;
    batch.b = 1, batch.n = array.shape(0), batch.m = array.shape(1);
    for (int d = 0; d < 2; ++d) {
        if (array.strides(d) % array.itemsize() != 0) return py::none();
        batch.strides[d + 1] = array.strides(d) / array.itemsize();
    }
    expect_indexable("cost", batch.n, batch.m);
    const bool all = batch.n <= batch.m, small = batch.n * batch.m <= kSmallEntries;
    const int64_t pairs = all ? batch.n : batch.m;
    // The column of each row is the second answer, the rest is needed while the problem is solved only.
    py::array perm = new_vector<int64_t>(batch.n);
    std::vector<double> numbers(static_cast<size_t>(answer_size(batch)));
    place_answer(batch, numbers.data());
    batch.perm = static_cast<int64_t*>(perm.mutable_data());
    const AssignmentFailure failure = small ? solve_small(batch, maximize) : solve(&batch, 1, maximize, threads);
    if (failure.outcome != AssignmentOutcome::solved) return py::none();
    py::array rows = new_vector<int64_t>(pairs);
    auto* row = static_cast<int64_t*>(rows.mutable_data());
    if (all) {
        for (int64_t i = 0; i < pairs; ++i) row[i] = i;
        return pair_of(std::move(rows), std::move(perm));
    }
    py::array columns = new_vector<int64_t>(pairs);
    auto* column = static_cast<int64_t*>(columns.mutable_data());
    for (int64_t i = 0; i < batch.n; ++i) {
        if (batch.perm[i] >= 0) *row++ = i, *column++ = batch.perm[i];
    }
    return pair_of(std::move(rows), std::move(columns));
}

// Calls that are bound without pybind11's search for an overload, whose price a small problem notices.
template <size_t Count, typename Call>
PyObject* called(const char* name, PyObject* const* given, Py_ssize_t count, const Call& call) {
    try {
        if (count != static_cast<Py_ssize_t>(Count)) {
            throw py::type_error(std::string(name) + ": given " + std::to_string(count) + " arguments, expected " +
                                 std::to_string(Count));
        }
        const int maximize = PyObject_IsTrue(given[1]);
        if (maximize < 0) throw py::error_already_set();
        return call(given, maximize != 0).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

int threads_of(PyObject* given) {
    const int threads = PyLong_Check(given) ? static_cast<int>(PyLong_AsLong(given)) : -1;
    if (PyErr_Occurred()) throw py::error_already_set();
    return threads;
}

PyObject* call_assign_small(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return called<3>("assign_small", given, count, [](PyObject* const* arguments, bool maximize) {
        return assign_small(arguments[0], maximize, arguments[2]);
    });
}

PyObject* call_assign_array(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return called<3>("assign_array", given, count, [](PyObject* const* arguments, bool maximize) {
        return assign_array(arguments[0], maximize, threads_of(arguments[2]));
    });
}

PyMethodDef kDirect[] = {
    {"assign_small", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_assign_small)), METH_FASTCALL,
     "Do the same for a small torch matrix, without an export; None for what it does not take."},
    {"assign_array", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_assign_array)), METH_FASTCALL,
     "Rows and columns of one numpy matrix; None for arrays it does not take and problems without an answer."},
    {nullptr, nullptr, 0, nullptr}};

// The GPU's algorithm on this machine, for its tests.
void emulate_linear_assignment(const py::list& costs, bool maximize, const std::vector<bool>& exchanged,
                               const py::list& start, const py::list& answers, const py::object& status,
                               uint32_t seed) {
    const ParallelCall call = read_parallel_call(costs, maximize, exchanged, start, answers, status, {});
    const py::gil_scoped_release release;
    emulate_assignments(call.problems, seed);
}

}  // namespace

void bind_linear_assignment(py::module_& m) {
    m.def("linear_assignment", &linear_assignment, py::arg("costs"), py::arg("maximize"), py::arg("start"),
          py::arg("answers"), py::arg("threads"),
          "Fill the answers to lists of costs, (n, m) or (b, n, m); None, or the first failure as five numbers.");
    m.def("assign_matrix", &assign_matrix, py::arg("cost"), py::arg("maximize"), py::arg("start"), py::arg("threads"),
          "Solve one matrix: perm, row duals, column duals, gap, objective and n in one array; or the failure.");
    m.def("emulate_linear_assignment", &emulate_linear_assignment, py::arg("costs"), py::arg("maximize"),
          py::arg("exchanged"), py::arg("start"), py::arg("answers"), py::arg("status"), py::arg("seed") = 0,
          "Play the GPU's algorithm on one thread, for its tests; slow.");
    if (PyModule_AddFunctions(m.ptr(), kDirect) != 0) throw py::error_already_set();
}

}  // namespace pyalign
