#include "linear_assignment/linear_assignment_cuda.h"

#include <pybind11/stl.h>

#include "bindings/cuda_module.h"
#include "bindings/parallel_problems.h"

namespace pyalign {
namespace {

using Shapes = std::vector<std::tuple<int64_t, int64_t, int64_t>>;

TeamKind kind_of(const std::string& name) {
    const std::vector<std::string> names = {"any", "block", "cluster", "grid"};
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
        throw py::value_error("team: given '" + name + "', expected any, block, cluster or grid");
    }
    return static_cast<TeamKind>(at - names.begin());
}

void expect_clusters(TeamKind kind, const AssignmentMachine& machine) {
    if (kind == TeamKind::cluster && !machine.clusters) {
        throw py::value_error("team: given 'cluster', expected another one: there is no code for clusters here");
    }
}

AssignmentPlan plan_of(const Shapes& shapes, const std::string& team, const AssignmentMachine& machine) {
    constexpr int64_t most = std::numeric_limits<int32_t>::max() / 64;
    std::vector<ParallelProblem> problems;
    for (const auto& [b, n, m] : shapes) {
        if (b < 0 || n < 0 || n > m || m > most) {
            throw py::value_error("shapes: given (" + std::to_string(b) + ", " + std::to_string(n) + ", " +
                                  std::to_string(m) + "), expected no more rows than columns and at most " +
                                  std::to_string(most));
        }
        ParallelProblem problem{};
        problem.n = static_cast<int32_t>(n), problem.m = static_cast<int32_t>(m);
        problems.insert(problems.end(), static_cast<size_t>(b), problem);
    }
    expect_clusters(kind_of(team), machine);
    return plan_assignments(problems, kind_of(team), machine);
}

py::dict show_plan(const Shapes& shapes, const std::string& team, int multiprocessors, bool clusters, size_t shared) {
    if (multiprocessors < 1) throw py::value_error("multiprocessors: expected at least 1");
    const AssignmentPlan plan = plan_of(shapes, team, {multiprocessors, clusters, shared});
    const char* names[] = {"any", "block", "cluster", "grid"};
    py::list launches;
    for (const AssignmentLaunch& launch : plan.launches) {
        py::dict shown;
        shown["team"] = names[static_cast<int>(launch.kind)];
        shown["begin"] = launch.begin, shown["count"] = launch.count;
        shown["threads"] = launch.threads, shown["blocks_of_team"] = launch.blocks_of_team;
        shown["teams"] = launch.teams;
        shown["shared"] = launch.hot_is_shared ? launch.hot : 0;
        shown["scratch"] = launch.scratch_of_team();
        launches.append(shown);
    }
    py::dict shown;
    shown["order"] = plan.order, shown["launches"] = launches, shown["bytes"] = plan.bytes;
    return shown;
}

size_t bytes_of(const Shapes& shapes, const std::string& team, int device) {
    return plan_of(shapes, team, assignment_machine(device)).bytes;
}

void linear_assignment(const py::list& costs, bool maximize, const std::vector<bool>& exchanged, const py::list& start,
                       const py::list& answers, const py::object& status, const std::string& team,
                       const py::object& workspace, int device, std::uintptr_t stream) {
    const Place place = Place::cuda(device);
    const ParallelCall call = read_parallel_call(costs, maximize, exchanged, start, answers, status, place);
    if (call.problems.empty()) return;
    const AssignmentMachine machine = assignment_machine(device);
    expect_clusters(kind_of(team), machine);
    const AssignmentPlan plan = plan_assignments(call.problems, kind_of(team), machine);
    const Borrowed memory(workspace, "workspace", {DType::u8}, place);
    linear_assignment_cuda(call.problems, plan, cuda_call(device, stream, memory, plan.bytes));
}

void bind(py::module_& m) {
    m.def("linear_assignment", &linear_assignment, py::arg("costs"), py::arg("maximize"), py::arg("exchanged"),
          py::arg("start"), py::arg("answers"), py::arg("status"), py::arg("team"), py::arg("workspace"),
          py::arg("device"), py::arg("stream"),
          "Queue the solution of lists of costs with no more rows than columns; status takes the outcomes.");
    m.def("linear_assignment_bytes", &bytes_of, py::arg("shapes"), py::arg("team"), py::arg("device"),
          "The size of the workspace for problems of these (b, n, m).");
    m.def("linear_assignment_plan", &show_plan, py::arg("shapes"), py::arg("team"), py::arg("multiprocessors"),
          py::arg("clusters"), py::arg("shared"),
          "The launches for problems of these (b, n, m) on a device with these properties, and the workspace.");
}

const CudaBinding binding(&bind);

}  // namespace
}  // namespace pyalign
