#include "linear_assignment/linear_assignment.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

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

// What a small problem costs is mostly its outputs, so one matrix has two: the permutation, and all other numbers.
struct OneAnswer {
    explicit OneAnswer(AssignmentBatch& batch) : perm(batch.n), numbers(batch.n + batch.m + 2) {
        batch.perm = perm.mutable_data();
        batch.row_duals = numbers.mutable_data();
        batch.col_duals = batch.row_duals + batch.n;
        batch.gap = batch.col_duals + batch.m;
        batch.objective = batch.gap + 1;
    }
    py::array_t<int64_t> perm;
    py::array_t<double> numbers;
};

template <typename T>
const T* read(const py::object& array, const char* name, int64_t size) {
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(array)) {
        throw py::type_error(std::string(name) + ": expected a contiguous array of the dtype that assign_matrix gives");
    }
    const auto values = py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(array);
    if (values.ndim() != 1 || values.shape(0) != size) {
        throw py::value_error(std::string(name) + ": expected " + std::to_string(size) + " numbers");
    }
    return values.data();
}

py::object assign_matrix(py::handle cost, bool maximize, const py::object& start_perm, const py::object& start_numbers,
                         int threads) {
    const Borrowed held(cost, "cost", kCosts);
    AssignmentBatch batch = costs_of(held.view(), "cost");
    if (held.view().dim() != 2) {
        throw py::value_error("cost: given shape " + show(held.view().shape) + ", expected 2 dimensions");
    }
    if (!start_perm.is_none()) {
        batch.start_perm = read<int64_t>(start_perm, "start_perm", batch.n);
        batch.start_rows = read<double>(start_numbers, "start_numbers", batch.n + batch.m + 2);
        batch.start_columns = batch.start_rows + batch.n;
    }
    OneAnswer answer(batch);
    const AssignmentFailure failure = solve(&batch, 1, maximize, threads);
    if (failure.outcome != AssignmentOutcome::solved) return outcome_of(failure);
    return py::make_tuple(std::move(answer.perm), std::move(answer.numbers));
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
    OneAnswer answer(batch);
    if (solve(&batch, 1, maximize, threads).outcome != AssignmentOutcome::solved) return py::none();
    const int64_t pairs = std::min(batch.n, batch.m);
    py::array_t<int64_t> rows(pairs);
    int64_t* row = rows.mutable_data();
    if (pairs == batch.n) {
        for (int64_t i = 0; i < pairs; ++i) row[i] = i;
        return py::make_tuple(std::move(rows), std::move(answer.perm));
    }
    py::array_t<int64_t> columns(pairs);
    int64_t* column = columns.mutable_data();
    for (int64_t i = 0; i < batch.n; ++i) {
        if (batch.perm[i] >= 0) *row++ = i, *column++ = batch.perm[i];
    }
    return py::make_tuple(std::move(rows), std::move(columns));
}

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
    m.def("assign_matrix", &assign_matrix, py::arg("cost"), py::arg("maximize"), py::arg("start_perm"),
          py::arg("start_numbers"), py::arg("threads"),
          "Solve one matrix: perm, and row duals, column duals, gap and objective in one array; or the failure.");
    m.def("assign_array", &assign_array, py::arg("cost"), py::arg("maximize"), py::arg("threads"),
          "Rows and columns of one numpy matrix; None for arrays it does not take and problems without an answer.");
    m.def("emulate_linear_assignment", &emulate_linear_assignment, py::arg("costs"), py::arg("maximize"),
          py::arg("exchanged"), py::arg("start"), py::arg("answers"), py::arg("status"), py::arg("seed") = 0,
          "Play the GPU's algorithm on one thread, for its tests; slow.");
}

}  // namespace pyalign
