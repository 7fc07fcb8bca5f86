#include "linear_assignment/parallel_host.h"

#include "linear_assignment/parallel_solver.h"

namespace pyalign {

void emulate_assignments(const std::vector<ParallelProblem>& problems, uint32_t seed) {
    for (const ParallelProblem& problem : problems) {
        const ParallelBytes bytes = parallel_bytes(problem.n, problem.m);
        std::vector<double> hot(bytes.hot / sizeof(double) + 2), cold(bytes.cold / sizeof(double) + 2);
        Carver first{reinterpret_cast<char*>(hot.data()), 0}, second{reinterpret_cast<char*>(cold.data()), 0};
        const ParallelWork work = lay_out(problem.n, problem.m, &first, &second);
        HostTeam team(seed);
        if (problem.single) {
            ParallelSolver<HostTeam, float>(team, problem, work).solve();
        } else {
            ParallelSolver<HostTeam, double>(team, problem, work).solve();
        }
    }
}

}  // namespace pyalign
