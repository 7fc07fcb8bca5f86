// The GPU's algorithm played by one host thread, for tests.
#pragma once

#include <vector>

#include "linear_assignment/parallel_problem.h"

namespace pyalign {

// With a seed, the work of every step is done in another order, as on a GPU it is in none.
void emulate_assignments(const std::vector<ParallelProblem>& problems, uint32_t seed);

}  // namespace pyalign
