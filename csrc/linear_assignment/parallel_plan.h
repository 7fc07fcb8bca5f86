// Which team solves which problems, and how much memory that takes. Plain arithmetic, so that it is tested without a
// GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cuda_call.h"
#include "linear_assignment/parallel_problem.h"

namespace pyalign {

enum class TeamKind { any = 0, block = 1, cluster = 2, grid = 3 };

struct AssignmentMachine {
    int multiprocessors;
    bool clusters;
    size_t shared;  // bytes that one block can have
};

// Problems of similar size, one after another in the table.
struct AssignmentLaunch {
    TeamKind kind;
    int64_t begin, count;
    int threads, blocks_of_team, teams;
    bool hot_is_shared;
    size_t hot, cold;  // bytes of the largest problem

    size_t scratch_of_team() const { return aligned_up(cold) + (hot_is_shared ? 0 : aligned_up(hot)); }
};

struct AssignmentPlan {
    std::vector<int64_t> order;  // place in the table -> number of the problem
    std::vector<AssignmentLaunch> launches;
    size_t bytes = 0;
};

constexpr size_t kSharedReserve = 2048;  // what a kernel itself keeps in shared memory
constexpr int32_t kBlockColumns = 1024;  // up to here one block is enough for a problem
constexpr int32_t kGridColumns = 4096;   // from here a single problem is worth all of the chip
constexpr int kMostBlocksOfCluster = 8, kMostThreads = 1024, kLeastThreads = 128;

inline int power_of_two_below(int64_t x) {
    int power = 1;
    while (power * 2 <= x) power *= 2;
    return power;
}

inline TeamKind team_of(int64_t count, int32_t m, const AssignmentMachine& machine) {
    if (m <= kBlockColumns || 2 * count > machine.multiprocessors) return TeamKind::block;
    if (count <= 2 && m >= kGridColumns) return TeamKind::grid;
    if (machine.clusters) return TeamKind::cluster;
    return 8 * count <= machine.multiprocessors ? TeamKind::grid : TeamKind::block;
}

inline AssignmentLaunch plan_launch(int64_t begin, int64_t count, int32_t n, int32_t m, TeamKind kind,
                                    const AssignmentMachine& machine) {
    const ParallelBytes bytes = parallel_bytes(n, m);
    AssignmentLaunch launch{kind, begin, count, kMostThreads, 1, 1, false, bytes.hot, bytes.cold};
    if (kind == TeamKind::grid) {
        launch.blocks_of_team = machine.multiprocessors;
    } else if (kind == TeamKind::cluster) {
        const int most = power_of_two_below(std::max<int64_t>(1, machine.multiprocessors / count));
        launch.blocks_of_team = std::min(kMostBlocksOfCluster, most);
        launch.teams = static_cast<int>(std::min<int64_t>(count, machine.multiprocessors / launch.blocks_of_team));
    } else {
        launch.hot_is_shared = bytes.hot + kSharedReserve <= machine.shared;
        // Registers allow kMostThreads threads of a multiprocessor at a time: one block of them, or several smaller.
        const int64_t wanted = (count + machine.multiprocessors - 1) / machine.multiprocessors;
        const int64_t fit = launch.hot_is_shared ? machine.shared / (bytes.hot + kSharedReserve) : 1;
        const int64_t most = std::max<int64_t>(1, std::min<int64_t>({wanted, fit, kMostThreads / kLeastThreads}));
        const int together = power_of_two_below(most), useful = power_of_two_below(int64_t{16} * n);
        launch.threads = std::max(kLeastThreads, std::min(kMostThreads / together, useful));
        launch.teams = static_cast<int>(std::min<int64_t>(count, int64_t{machine.multiprocessors} * together));
    }
    return launch;
}

// Problems of at most 64 columns, of up to twice as many, and so on, each kind in one launch.
inline AssignmentPlan plan_assignments(const std::vector<ParallelProblem>& problems, TeamKind kind,
                                       const AssignmentMachine& machine) {
    AssignmentPlan plan;
    const int64_t count = static_cast<int64_t>(problems.size());
    const auto bucket = [&](int64_t k) {
        int b = 0;
        while ((int64_t{64} << b) < problems[k].m) ++b;
        return b;
    };
    plan.order.resize(problems.size());
    for (int64_t k = 0; k < count; ++k) plan.order[k] = k;
    // The largest first: what starts last should not take longest.
    std::stable_sort(plan.order.begin(), plan.order.end(), [&](int64_t a, int64_t b) {
        const int64_t size_a = int64_t{problems[a].n} * problems[a].m, size_b = int64_t{problems[b].n} * problems[b].m;
        return bucket(a) != bucket(b) ? bucket(a) > bucket(b) : size_a > size_b;
    });
    size_t scratch = 0;
    for (int64_t begin = 0, end; begin < count; begin = end) {
        int32_t n = 0, m = 0;
        for (end = begin; end < count && bucket(plan.order[end]) == bucket(plan.order[begin]); ++end) {
            n = std::max(n, problems[plan.order[end]].n), m = std::max(m, problems[plan.order[end]].m);
        }
        const TeamKind chosen = kind == TeamKind::any ? team_of(end - begin, m, machine) : kind;
        plan.launches.push_back(plan_launch(begin, end - begin, n, m, chosen, machine));
        const AssignmentLaunch& launch = plan.launches.back();
        scratch = std::max(scratch, launch.teams * launch.scratch_of_team());
    }
    plan.bytes = aligned_up(problems.size() * sizeof(ParallelProblem)) +
                 aligned_up(plan.launches.size() * sizeof(int32_t)) + scratch;
    return plan;
}

}  // namespace pyalign
