// The GPU's algorithm played by one host thread, for tests.
#pragma once

#include <vector>

#include "linear_assignment/parallel_problem.h"

namespace pyalign {

void solve_as_on_gpu(const std::vector<ParallelProblem>& problems);

}  // namespace pyalign
