// Weighted sums and products of permuted tensors on the CPU. The limit is memory: each input is read once, and the
// result written once; (k + 1) * bytes of a tensor at the machine's bandwidth. Loads of single entries cost about one
// cycle each, so entries of several rows are moved together where the kernels can: two transposes per entry for one
// tensor; for k tensors, which are summed while they are turned, one for each and one for their sum.
#include <atomic>
#include <memory>
#include <vector>

#include "permuted_lerp/permuted_lerp.h"
#include "permuted_lerp/walk.h"

namespace pyalign {
namespace {

constexpr int64_t kPastCaches = 24 << 20;  // bytes of all operands from where on no cache keeps the result

// Every thread begins with a share of its own, the same as in torch's loops, so that it finds in its caches what it
// left there; then it helps the others. make(chunk) gives what a thread does with the parts of the rows of that chunk.
template <typename Make>
void run_walk(const Walk& walk, int threads, Interrupt& interrupt, Make make) {
    const int64_t workers = std::clamp<int64_t>(threads, 1, walk.chunks);
    const auto share = [&](int64_t worker) { return walk.chunks * worker / workers; };
    std::vector<std::atomic<int64_t>> next(workers);
    for (int64_t worker = 0; worker < workers; ++worker) next[worker] = share(worker);
    run_on_threads(
        static_cast<int>(workers),
        [&](int own) {
            int64_t index = 0;
            Walker walker(walk, make(index));
            for (int64_t turn = 0; turn < workers; ++turn) {
                const int64_t worker = (own + turn) % workers;
                while ((index = next[worker].fetch_add(1)) < share(worker + 1) && !interrupt.stopped()) {
                    walker.chunk(index);
                }
            }
            walk.kernels.fence();
        },
        interrupt);
}

}  // namespace

void permuted_sum_cpu(const TensorView& out, const std::vector<PermutedTerm>& terms, int threads,
                      Interrupt& interrupt) {
    if (out.size() == 0) return;
    std::vector<Operand> operands{{out, {}}};
    std::vector<double> weights{0.0};
    for (const PermutedTerm& term : terms) {
        if (term.weight == 0.0) continue;
        operands.push_back({term.tensor, term.perms});
        weights.push_back(term.weight);
    }
    const Walk walk(std::move(operands), std::move(weights));
    const int64_t bytes = out.size() * walk.plan.item * static_cast<int64_t>(walk.operands.size());
    bool past = bytes >= kPastCaches && walk.plan.rows[0].table.empty();
    for (size_t k = 1; k < walk.operands.size(); ++k) past = past && !overlap(out, walk.operands[k].tensor);
    std::vector<double> by_row;
    for (size_t k : walk.batches.back().by_row) by_row.push_back(walk.weights[k]);
    run_walk(walk, threads, interrupt, [&](const int64_t&) {
        return [&](char* result, const char* const* pointers, int64_t count, const char* sums) {
            walk.kernels.blend(out.dtype, result, sums, pointers, by_row.data(), static_cast<int64_t>(by_row.size()),
                               count, past);
        };
    });
}

std::vector<double> permuted_dots_cpu(const TensorView& with, const std::vector<PermutedTerm>& terms, int threads,
                                      Interrupt& interrupt) {
    std::vector<double> totals(terms.size(), 0.0);
    if (with.size() == 0 || terms.empty()) return totals;
    std::vector<Operand> operands{{with, {}}};
    for (const PermutedTerm& term : terms) operands.push_back({term.tensor, term.perms});
    const Walk walk(std::move(operands), {});
    const size_t k = terms.size();
    std::vector<double> sums(walk.chunks * k, 0.0);  // per chunk, so that no number of threads changes the total
    run_walk(walk, threads, interrupt, [&](const int64_t& chunk) {
        return [&](char*, const char* const* pointers, int64_t count, const char*) {
            walk.kernels.dot(with.dtype, pointers[0], pointers + 1, static_cast<int64_t>(k), count,
                             sums.data() + chunk * k);
        };
    });
    for (size_t i = 0; i < sums.size(); ++i) totals[i % k] += sums[i];
    return totals;
}

}  // namespace pyalign
