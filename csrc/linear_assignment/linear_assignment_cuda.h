// Linear assignment on a GPU: the contract.
#pragma once

#include <vector>

#include "core/cuda_call.h"
#include "linear_assignment/parallel_plan.h"

namespace pyalign {

AssignmentMachine assignment_machine(int device);

// Queues the solution of all problems. The workspace holds plan.bytes; `problems` is not read after the call.
void linear_assignment_cuda(const std::vector<ParallelProblem>& problems, const AssignmentPlan& plan,
                            const CudaCall& call);

}  // namespace pyalign
