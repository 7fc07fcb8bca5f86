// Linear assignment on a GPU: row reductions and shortest augmenting paths, each for all rows at once.
//
// What bounds it. A path search that takes one column after another, as on the CPU, is a chain of n^2 and more steps of
// a microsecond: a GPU loses it to one core. Here the length of the chain is the number of rounds, each of which treats
// every row that has something to do, so that latency is paid per round (two barriers) and not per row:
//
//   lists    every row keeps its 32 cheapest columns, one per lane; one or two reads of the matrix, by all rows at once
//   seat     rows take their cheapest columns; where these are all different, that is the answer
//   bids     64 rounds of row reductions, all rows without a column at once (an auction without epsilon: every bid
//            keeps the pair the cheapest of its row, so nothing has to be repaired afterwards)
//   phases   one search from all rows without a column at once, by label correction; where n = m, every tree of the
//            forest is augmented in the same phase, so that few phases remain (parallel_paths.h says why that is exact)
//   answer   row duals and gap, from the lists where their bound allows it, from the whole row where not
//
// Everything is computed in float64, as on the CPU, and no step rests on a tolerance. Rounds are bulk synchronous and
// ties are broken by numbers, so that the answer is the same for every team, device and run, and the same as that of
// the host's team (team.h).
//
// Teams. Small problems are solved by one block each, with everything but lists and costs in shared memory: a barrier
// takes tens of nanoseconds, and a batch fills the chip. A larger one has a cluster of blocks, whose barrier is in
// hardware. From 4096 columns on, one or two problems have the whole grid: reading the costs is then the larger part.
//
// Nothing is allocated here, and nothing waits for the device: the table of problems goes there as parameters of small
// kernels, since a copy from pageable memory may wait for the stream, or read the memory after the call. The outcome of
// each problem is left in its status. Not for CUDA graphs: the caller reads the outcomes back.
#include "core/cuda_device.h"
#include "linear_assignment/linear_assignment_cuda.h"
#include "linear_assignment/team_cuda.h"

// After team_cuda.h, whose Lanes it uses.
#include "linear_assignment/parallel_solver.h"

namespace pyalign {
namespace {

struct Task {
    const ParallelProblem* problems;
    int64_t count;
    int32_t* taken;  // by blocks that ask for the next problem
    char* scratch;
    uint64_t scratch_of_team, hot;
    int hot_is_shared;
};

template <typename Barrier>
__device__ __forceinline__ void solve_problem(const ParallelProblem& problem, const ParallelWork& work) {
    CudaTeam<Barrier> team;
    if (problem.single) {
        ParallelSolver<CudaTeam<Barrier>, float>(team, problem, work).solve();
    } else {
        ParallelSolver<CudaTeam<Barrier>, double>(team, problem, work).solve();
    }
}

__device__ __forceinline__ void place(const ParallelProblem& problem, char* hot, char* cold, ParallelWork* work) {
    Carver first{hot, 0}, second{cold, 0};
    *work = lay_out(problem.n, problem.m, &first, &second);
}

__global__ void __launch_bounds__(kMostThreads) solve_by_blocks(Task task) {
    extern __shared__ __align__(16) char shared[];
    __shared__ ParallelProblem problem;
    __shared__ ParallelWork work;
    __shared__ int64_t taken;
    char* scratch = task.scratch + blockIdx.x * task.scratch_of_team;
    while (true) {
        if (threadIdx.x == 0) {
            taken = atomicAdd(task.taken, 1);
            if (taken < task.count) {
                problem = task.problems[taken];
                place(problem, task.hot_is_shared ? shared : scratch, scratch + (task.hot_is_shared ? 0 : task.hot),
                      &work);
            }
        }
        __syncthreads();
        if (taken >= task.count) return;
        solve_problem<BlockBarrier>(problem, work);
        __syncthreads();
    }
}

template <typename Barrier>
__device__ __forceinline__ void solve_in_turn(const Task& task, int team, int teams) {
    __shared__ ParallelProblem problem;
    __shared__ ParallelWork work;
    char* scratch = task.scratch + team * task.scratch_of_team;
    for (int64_t k = team; k < task.count; k += teams) {
        if (threadIdx.x == 0) {
            problem = task.problems[k];
            place(problem, scratch, scratch + task.hot, &work);
        }
        Barrier::sync();
        solve_problem<Barrier>(problem, work);
        Barrier::sync();
    }
}

__global__ void __launch_bounds__(kMostThreads) solve_by_clusters(Task task) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const int size = ClusterBarrier::blocks();
    solve_in_turn<ClusterBarrier>(task, static_cast<int>(blockIdx.x) / size, static_cast<int>(gridDim.x) / size);
#endif
}

__global__ void __launch_bounds__(kMostThreads) solve_by_grid(Task task) {
    solve_in_turn<GridBarrier>(task, 0, 1);
}

// As many rows of the table as the parameters of a kernel may have, 4 KB.
struct TablePart {
    static constexpr int kRows = (4096 - 16) / sizeof(ParallelProblem);
    ParallelProblem* to;
    int count;
    ParallelProblem rows[kRows];
};
static_assert(sizeof(TablePart) <= 4096);

__global__ void write_table(const TablePart part) {
    if (static_cast<int>(threadIdx.x) < part.count) part.to[threadIdx.x] = part.rows[threadIdx.x];
}

void send_table(const std::vector<ParallelProblem>& problems, const std::vector<int64_t>& order, ParallelProblem* to,
                cudaStream_t stream) {
    TablePart part{};
    for (size_t begin = 0; begin < order.size(); begin += TablePart::kRows) {
        part.to = to + begin;
        part.count = static_cast<int>(std::min<size_t>(TablePart::kRows, order.size() - begin));
        for (int k = 0; k < part.count; ++k) {
            part.rows[k] = problems[static_cast<size_t>(order[begin + static_cast<size_t>(k)])];
        }
        write_table<<<1, 64, 0, stream>>>(part);
        check_launch("linear_assignment, table of problems");
    }
}

void start(const AssignmentLaunch& launch, Task task, cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(launch.teams * launch.blocks_of_team));
    config.blockDim = dim3(static_cast<unsigned>(launch.threads));
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    config.attrs = &attribute, config.numAttrs = 1;
    if (launch.kind == TeamKind::grid) {
        attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
        check_cuda(cudaLaunchKernelEx(&config, solve_by_grid, task), "linear_assignment, whole grid");
    } else if (launch.kind == TeamKind::cluster) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = static_cast<unsigned>(launch.blocks_of_team);
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        check_cuda(cudaLaunchKernelEx(&config, solve_by_clusters, task), "linear_assignment, clusters");
    } else {
        const size_t shared = launch.hot_is_shared ? launch.hot : 0;
        check_cuda(cudaFuncSetAttribute(solve_by_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared)),
                   "linear_assignment, shared memory");
        config.dynamicSmemBytes = shared, config.numAttrs = 0;
        check_cuda(cudaLaunchKernelEx(&config, solve_by_blocks, task), "linear_assignment, blocks");
    }
}

int attribute_of(int device, cudaDeviceAttr attribute) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
}

}  // namespace

AssignmentMachine assignment_machine(int device) {
    const OnDevice current(device);
    // Code that the driver made from that of an earlier architecture has no clusters, whatever the device can.
    cudaFuncAttributes code{};
    check_cuda(cudaFuncGetAttributes(&code, solve_by_clusters), "cudaFuncGetAttributes");
    return {attribute_of(device, cudaDevAttrMultiProcessorCount), code.ptxVersion >= 90,
            static_cast<size_t>(attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

void linear_assignment_cuda(const std::vector<ParallelProblem>& problems, const AssignmentPlan& plan,
                            const CudaCall& call) {
    const OnDevice current(call.device);
    const cudaStream_t stream = stream_of(call);
    WorkspaceParts parts(call.workspace);
    ParallelProblem* on_device = parts.take<ParallelProblem>(plan.order.size());
    int32_t* taken = parts.take<int32_t>(plan.launches.size());
    char* scratch = parts.take<char>(0);
    send_table(problems, plan.order, on_device, stream);
    check_cuda(cudaMemsetAsync(taken, 0, plan.launches.size() * sizeof(int32_t), stream), "cudaMemsetAsync");
    for (size_t k = 0; k < plan.launches.size(); ++k) {
        const AssignmentLaunch& launch = plan.launches[k];
        start(launch,
              {on_device + launch.begin, launch.count, taken + k, scratch, launch.scratch_of_team(),
               launch.hot_is_shared ? 0 : aligned_up(launch.hot), launch.hot_is_shared},
              stream);
    }
}

}  // namespace pyalign
