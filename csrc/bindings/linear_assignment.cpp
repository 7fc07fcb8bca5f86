#include "linear_assignment/linear_assignment.h"

#include "bindings/tensor.h"

namespace pyalign {
namespace {

using Fields = std::vector<Borrowed>;

AssignmentBatch read_batch(const std::string& name, py::handle cost, py::handle start, py::handle answer,
                           Fields& held) {
    const auto costs = {DType::f32, DType::f64, DType::i8, DType::u8, DType::i16, DType::i32, DType::i64};
    held.emplace_back(cost, name, costs);
    AssignmentBatch batch{};
    batch.cost = held.back().view();
    const bool single = batch.cost.dim() == 2;
    if (single) {
        batch.cost.shape.insert(batch.cost.shape.begin(), 1);
        batch.cost.strides.insert(batch.cost.strides.begin(), 0);
    } else if (batch.cost.dim() != 3) {
        throw py::value_error(name + ": given shape " + show(batch.cost.shape) + ", expected 2 or 3 dimensions");
    }
    const int64_t b = batch.cost.shape[0], n = batch.cost.shape[1], m = batch.cost.shape[2];
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
        batch.start_rows = field(start, 0, "start row_duals", DType::f64, rows);
        batch.start_columns = field(start, 1, "start col_duals", DType::f64, columns);
        batch.start_perm = field(start, 2, "start perm", DType::i64, rows);
    }
    return batch;
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
    PythonInterrupt signals;
    AssignmentFailure failure;
    threads = checked_threads(threads);
    {
        const py::gil_scoped_release release;
        failure = linear_assignment_cpu(batches, maximize, threads, signals.interrupt());
    }
    signals.rethrow();
    if (failure.outcome == AssignmentOutcome::solved) return py::none();
    return py::make_tuple(static_cast<int>(failure.outcome), failure.batch, failure.problem, failure.row,
                          failure.column);
}

}  // namespace

void bind_linear_assignment(py::module_& m) {
    m.def("linear_assignment", &linear_assignment, py::arg("costs"), py::arg("maximize"), py::arg("start"),
          py::arg("answers"), py::arg("threads"),
          "Fill the answers to lists of costs, (n, m) or (b, n, m); None, or the first failure as five numbers.");
}

}  // namespace pyalign
