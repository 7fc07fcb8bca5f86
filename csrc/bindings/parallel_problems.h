// Tensors as the problems of the GPU's algorithm, for the GPU and for the host's team that plays it.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "bindings/tensor.h"
#include "linear_assignment/parallel_problem.h"

namespace pyalign {

// What one call is given, with what holds its tensors.
struct ParallelCall {
    std::vector<Borrowed> held;
    std::vector<ParallelProblem> problems;
};

class ParallelReader {
  public:
    ParallelReader(ParallelCall& call, bool maximize, Place place) : call_(call), maximize_(maximize), place_(place) {}

    // The costs of item k, (n, m) or (b, n, m) with n <= m and unit column stride; where `exchanged`, they are the
    // transposed ones of the answer. `start` is None, or column duals and permutation, for as many rows as columns.
    void read(size_t k, py::handle cost, bool exchanged, py::handle start, py::handle answer) {
        name_ = "costs[" + std::to_string(k) + "]";
        const TensorView view = borrow(cost, name_, {DType::f32, DType::f64});
        if (view.dim() != 2 && view.dim() != 3) {
            throw py::value_error(name_ + ": given shape " + show(view.shape) + ", expected 2 or 3 dimensions");
        }
        const bool single = view.dim() == 2;
        const int64_t b = single ? 1 : view.shape[0], n = view.shape[single ? 0 : 1], m = view.shape[single ? 1 : 2];
        check_extents(view, n, m, single ? 0 : 1);
        const std::vector<int64_t> in_rows = shape(single, b, exchanged ? m : n),
                                   in_columns = shape(single, b, exchanged ? n : m),
                                   per_problem = single ? std::vector<int64_t>{} : std::vector<int64_t>{b};
        expect_fields(answer, 5, "answer");
        ParallelProblem problem{};
        problem.n = static_cast<int32_t>(n), problem.m = static_cast<int32_t>(m);
        problem.exchanged = exchanged, problem.single = view.dtype == DType::f32;
        problem.sign = maximize_ ? -1.0 : 1.0;
        problem.stride = view.strides[single ? 0 : 1];
        problem.perm = field(answer, 0, "perm", DType::i64, in_rows).as<int64_t>();
        problem.row_duals = field(answer, 1, "row_duals", DType::f64, in_rows).as<double>();
        problem.col_duals = field(answer, 2, "col_duals", DType::f64, in_columns).as<double>();
        problem.gap = field(answer, 3, "gap", DType::f64, per_problem).as<double>();
        problem.objective = field(answer, 4, "objective", DType::f64, per_problem).as<double>();
        if (!start.is_none()) {
            if (n != m) throw py::value_error(name_ + " start: expected none for " + show(view.shape) + " costs");
            expect_fields(start, 2, "start");
            problem.start_columns = field(start, 0, "start col_duals", DType::f64, in_columns).as<double>();
            problem.start_perm = field(start, 1, "start perm", DType::i64, in_rows).as<int64_t>();
        }
        const int64_t step = single ? 0 : view.strides[0] * (problem.single ? 4 : 8);
        for (int64_t p = 0; p < b; ++p) push(problem, view.as<char>() + p * step, p, n, m);
    }

  private:
    TensorView borrow(py::handle object, const std::string& name, std::initializer_list<DType> allowed) {
        call_.held.emplace_back(object, name, allowed, place_);
        return call_.held.back().view();
    }

    TensorView field(py::handle from, size_t index, const char* what, DType dtype,
                     const std::vector<int64_t>& expected) {
        borrow(py::reinterpret_borrow<py::sequence>(from)[index], name_ + " " + what, {dtype});
        return call_.held.back().with_shape(expected).contiguous().view();
    }

    static std::vector<int64_t> shape(bool single, int64_t b, int64_t extent) {
        return single ? std::vector<int64_t>{extent} : std::vector<int64_t>{b, extent};
    }

    void expect_fields(py::handle sequence, size_t size, const char* what) const {
        if (!py::isinstance<py::sequence>(sequence) || py::len(sequence) != size) {
            throw py::type_error(name_ + " " + what + ": expected a sequence of " + std::to_string(size) + " tensors");
        }
    }

    void check_extents(const TensorView& view, int64_t n, int64_t m, int axis) const {
        constexpr int64_t most = std::numeric_limits<int32_t>::max() / 64;
        if (n > m) {
            throw py::value_error(name_ + ": given shape " + show(view.shape) + ", expected no more rows than columns");
        }
        if (m > most) {
            throw py::value_error(name_ + ": given " + std::to_string(m) + " columns, expected at most " +
                                  std::to_string(most));
        }
        if (m > 1 && view.size() > 0 && view.strides[static_cast<size_t>(axis) + 1] != 1) {
            throw py::value_error(name_ + ": given strides " + show(view.strides) + ", expected contiguous rows");
        }
    }

    void push(ParallelProblem problem, const char* cost, int64_t p, int64_t n, int64_t m) {
        const int64_t rows = problem.exchanged ? m : n, columns = problem.exchanged ? n : m;
        problem.cost = cost;
        problem.perm += p * rows, problem.row_duals += p * rows, problem.col_duals += p * columns;
        problem.gap += p, problem.objective += p;
        if (problem.start_perm) problem.start_columns += p * columns, problem.start_perm += p * rows;
        call_.problems.push_back(problem);
    }

    ParallelCall& call_;
    const bool maximize_;
    const Place place_;
    std::string name_;
};

// All items of a call. The status, (problems, 3) int32, takes the outcome of each problem in the order of the list.
inline ParallelCall read_parallel_call(const py::list& costs, bool maximize, const std::vector<bool>& exchanged,
                                       const py::list& start, const py::list& answers, py::handle status, Place place) {
    if (costs.size() != answers.size() || costs.size() != start.size() || costs.size() != exchanged.size()) {
        throw py::value_error("given " + std::to_string(costs.size()) + " costs, " + std::to_string(exchanged.size()) +
                              " exchanged, " + std::to_string(start.size()) + " starts and " +
                              std::to_string(answers.size()) + " answers, expected equally many");
    }
    ParallelCall call;
    ParallelReader reader(call, maximize, place);
    for (size_t k = 0; k < costs.size(); ++k) reader.read(k, costs[k], exchanged[k], start[k], answers[k]);
    const int64_t count = static_cast<int64_t>(call.problems.size());
    call.held.emplace_back(status, "status", std::initializer_list<DType>{DType::i32}, place);
    int32_t* next = call.held.back().with_shape({count, 3}).contiguous().view().as<int32_t>();
    for (ParallelProblem& problem : call.problems) problem.status = next, next += 3;
    return call;
}

}  // namespace pyalign
