// The GPU's linear assignment by a team of threads of the host, which run as those of a GPU do: at the same time, and
// together only at barriers. Built with the thread sanitizer, which sees a barrier that is missing; the answers must be
// those of one thread, to the last bit. test_team_of_threads.py builds and runs it.
#include <pthread.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "linear_assignment/parallel_solver.h"

using namespace pyalign;

namespace {

constexpr int kTeam = 4, kBarriers = 3;

class ThreadTeam {
  public:
    ThreadTeam(int rank, pthread_barrier_t* barriers) : rank_(rank), barriers_(barriers) {}

    template <typename F>
    void each(int64_t count, const F& f) const {
        for (int64_t k = rank_; k < count; k += kTeam) f(static_cast<int32_t>(k));
    }
    template <typename F>
    void groups(int64_t count, const F& f) const {
        each(count, [&](int32_t k) { f(HostGroup(), k); });
    }
    template <typename F>
    void first(const F& f) const {
        if (rank_ == 0) f();
    }
    // One after another: a thread that is late at one barrier would else be taken to have seen what others wrote before
    // the next.
    void sync() { pthread_barrier_wait(&barriers_[turn_++ % kBarriers]); }

    // Relaxed, as on a GPU: they order nothing else.
    static uint64_t atomic_min(uint64_t* at, uint64_t value) {
        return change(at, value, [](uint64_t a, uint64_t b) { return a < b; });
    }
    static void atomic_max(uint64_t* at, uint64_t value) {
        change(at, value, [](uint64_t a, uint64_t b) { return a > b; });
    }
    static void atomic_min(int32_t* at, int32_t value) {
        change(at, value, [](int32_t a, int32_t b) { return a < b; });
    }
    static int32_t atomic_add(int32_t* at, int32_t value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
    static int32_t atomic_exchange(int32_t* at, int32_t value) {
        return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
    }
    template <typename T>
    static T now(const T* at) {
        return __atomic_load_n(at, __ATOMIC_RELAXED);
    }
    template <typename T>
    static void put(T* at, T value) {
        __atomic_store_n(at, value, __ATOMIC_RELAXED);
    }

  private:
    template <typename T, typename Better>
    static T change(T* at, T value, const Better& better) {
        T before = now(at);
        while (better(value, before) &&
               !__atomic_compare_exchange_n(at, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
        return before;
    }

    int rank_, turn_ = 0;
    pthread_barrier_t* barriers_;
};

struct Trial {
    int32_t n, m;
    std::vector<double> cost, start_columns;
    std::vector<int64_t> start_perm;
};

double drawn(int kind, int i, int j, std::mt19937& rng) {
    const double u = static_cast<double>(rng()) / 4294967296.0;
    switch (kind) {
        case 0:
            return u;
        case 1:
            return static_cast<double>(rng() % 4);
        case 2:
            return (i + 1.0) * (j + 1.0);
        case 3:
            return rng() % 8 == 0 ? u : INFINITY;
        case 4:
            return 1.0 + 1e-12 * u;
        default:
            return rng() % 200 == 0 ? NAN : 3.0;
    }
}

Trial trial_of(int number, std::mt19937& rng) {
    Trial trial;
    trial.n = 1 + static_cast<int32_t>(rng() % 70);
    trial.m = trial.n + (number % 3 == 1 ? static_cast<int32_t>(rng() % 20) : number % 3 == 2 ? 1 : 0);
    for (int i = 0; i < trial.n; ++i) {
        for (int j = 0; j < trial.m; ++j) trial.cost.push_back(drawn(number % 6, i, j, rng));
    }
    if (trial.n == trial.m && number % 4 == 0) {
        for (int k = 0; k < trial.n; ++k) {
            trial.start_columns.push_back(-static_cast<double>(rng() % 100) / 100.0), trial.start_perm.push_back(k);
        }
    }
    return trial;
}

// Status, permutation, duals, gap and objective, as far as the status says that there are any.
std::vector<double> solved(const Trial& trial, bool by_threads) {
    const int32_t n = trial.n, m = trial.m;
    std::vector<double> numbers(static_cast<size_t>(n + m + 2));
    std::vector<int64_t> perm(static_cast<size_t>(n));
    int32_t status[3] = {-1, 0, 0};
    ParallelProblem problem{};
    problem.cost = trial.cost.data(), problem.stride = m, problem.n = n, problem.m = m, problem.sign = 1.0;
    problem.perm = perm.data(), problem.row_duals = numbers.data(), problem.col_duals = numbers.data() + n;
    problem.gap = numbers.data() + n + m, problem.objective = problem.gap + 1, problem.status = status;
    if (!trial.start_perm.empty()) {
        problem.start_columns = trial.start_columns.data(), problem.start_perm = trial.start_perm.data();
    }
    const ParallelBytes bytes = parallel_bytes(n, m);
    std::vector<double> hot(bytes.hot / sizeof(double) + 2), cold(bytes.cold / sizeof(double) + 2);
    Carver first{reinterpret_cast<char*>(hot.data()), 0}, second{reinterpret_cast<char*>(cold.data()), 0};
    const ParallelWork work = lay_out(n, m, &first, &second);
    if (by_threads) {
        pthread_barrier_t barriers[kBarriers];
        for (pthread_barrier_t& barrier : barriers) pthread_barrier_init(&barrier, nullptr, kTeam);
        std::vector<std::thread> threads;
        for (int rank = 0; rank < kTeam; ++rank) {
            threads.emplace_back([&, rank] {
                ThreadTeam team(rank, barriers);
                ParallelSolver<ThreadTeam, double>(team, problem, work).solve();
            });
        }
        for (std::thread& thread : threads) thread.join();
        for (pthread_barrier_t& barrier : barriers) pthread_barrier_destroy(&barrier);
    } else {
        HostTeam team;
        ParallelSolver<HostTeam, double>(team, problem, work).solve();
    }
    std::vector<double> answer(status, status + 1);
    if (status[0] == static_cast<int>(AssignmentOutcome::not_finite)) answer.assign(status, status + 3);
    if (status[0] != static_cast<int>(AssignmentOutcome::solved)) return answer;
    answer.insert(answer.end(), perm.begin(), perm.end());
    answer.insert(answer.end(), numbers.begin(), numbers.end());
    return answer;
}

}  // namespace

int main() {
    std::mt19937 rng(5);
    int outcomes[3] = {0, 0, 0};
    for (int number = 0; number < 60; ++number) {
        const Trial trial = trial_of(number, rng);
        const std::vector<double> expected = solved(trial, false);
        ++outcomes[static_cast<int>(expected[0])];
        if (solved(trial, true) != expected) {
            std::printf("trial %d, %d x %d: another answer than by one thread\n", number, trial.n, trial.m);
            return 1;
        }
    }
    std::printf("%d solved, %d not finite, %d infeasible\n", outcomes[0], outcomes[1], outcomes[2]);
    return 0;
}
