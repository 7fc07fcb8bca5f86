// Weighted sums and products of permuted tensors on the CPU. The limit is memory: each input is read once, and the
// result written once; (k + 1) * bytes of a tensor at the machine's bandwidth. Loads of single entries cost about one
// cycle each, so entries of several rows are moved together where the kernels can.
#include <atomic>
#include <memory>
#include <vector>

#include "core/simd.h"
#include "permuted_lerp/permuted_lerp.h"
#include "permuted_lerp/permuted_lerp_kernels.h"
#include "permuted_lerp/plan.h"

namespace pyalign {
namespace {

constexpr int64_t kPiece = 1 << 14;        // elements of a long row that are handled at once
constexpr int64_t kBlock = 512;            // elements that are collected before they are blended
constexpr int64_t kFiled = 640 << 10;      // bytes of filed rows: they stay in a second-level cache of 1 MiB
constexpr int64_t kAhead = 16 << 10;       // bytes of each operand that are asked for ahead of their use
constexpr int64_t kChunk = 1 << 18;        // elements handed to a thread at once
constexpr int64_t kPastCaches = 24 << 20;  // bytes of all operands from where on no cache keeps the result

// The highest address that belongs to a tensor.
const char* end_of(const TensorView& tensor) {
    int64_t reach = 1;
    for (int64_t d = 0; d < tensor.dim(); ++d) reach += std::max<int64_t>(0, tensor.strides[d]) * (tensor.shape[d] - 1);
    return static_cast<const char*>(tensor.data) + reach * item_size(tensor.dtype);
}

bool overlap(const TensorView& x, const TensorView& y) {
    return x.data < end_of(y) && y.data < end_of(x);
}

// Operands that are blended in one go, and those of them whose rows are filed before.
struct Batch {
    size_t begin, end;
    std::vector<size_t> filed;
};

// What all threads share: the plan, and how it is cut into groups of rows and chunks of groups, whatever their number.
struct Walk {
    const std::vector<Operand>& operands;
    const Plan plan;
    const LerpTable& kernels = PYALIGN_SELECT(lerp_table);
    bool written;  // operand 0 is the result
    std::vector<Batch> batches;
    std::vector<const char*> ends;
    int64_t together = 1, block = kBlock, piece = 0, pieces = 1, chunk = 1, chunks = 1;

    Walk(const std::vector<Operand>& given, bool first_is_written)
        : operands(given), plan(given), written(first_is_written) {
        for (const Operand& operand : operands) ends.push_back(readable_end(operand));
        choose_batches();
        int64_t tables = 0;
        for (const PlanRow& row : plan.rows) tables += !row.table.empty();
        if (together == 1 && tables > 1) block = kPiece;  // else their rows would push each other out
        block =
            tables == 0 ? 4 * kBlock : (block / 64 + plan.run - 1) / plan.run * 64 * plan.run;  // begins stay aligned
        pieces = together == 1 ? (plan.count + kPiece - 1) / kPiece : 1;
        const int64_t units = tables == 0 ? plan.count : plan.runs(), unit = tables == 0 ? 1 : plan.run;
        piece = (units + pieces - 1) / pieces * unit;
        pieces = (plan.count + piece - 1) / piece;
        const int64_t jobs = plan.outer * pieces;
        const int64_t fair = std::min(kChunk, std::max(kPiece, plan.outer * plan.count / 16));
        chunk = (std::max<int64_t>(1, fair / piece) + together - 1) / together * together;
        chunks = (jobs + chunk - 1) / chunk;
    }

  private:
    // Where another thread may be writing, runs are read to their own ends only.
    const char* readable_end(const Operand& operand) const {
        const bool shared = written && overlap(operand.tensor, operands[0].tensor);
        return shared ? static_cast<const char*>(operand.tensor.data) : end_of(operand.tensor);
    }

    // Filed rows have to stay in the second-level cache: where they all do not, operands are blended one after another.
    void choose_batches() {
        const size_t first = written ? 1 : 0;
        batches.push_back({first, operands.size(), {}});
        const int64_t rows = kernels.rows_at_once(plan.item), bytes = rows * plan.count * plan.item;
        if (rows == 0 || plan.run > 1 || plan.outer < 2 * rows || bytes > kFiled) return;
        std::vector<size_t> filed;
        for (size_t k = first; k < operands.size(); ++k) {
            if (!plan.rows[k].table.empty() && plan.rows[k].dense) filed.push_back(k);
        }
        if (filed.empty()) return;
        together = rows;
        if (static_cast<int64_t>(filed.size()) * bytes <= kFiled || !written) {
            batches[0].filed = std::move(filed);
            return;
        }
        batches.clear();
        for (size_t i = 0; i < filed.size(); ++i) {
            const size_t end = i + 1 < filed.size() ? filed[i] + 1 : operands.size();
            batches.push_back({batches.empty() ? first : batches.back().end, end, {filed[i]}});
        }
    }
};

// One thread's way through its chunks. `use` is called for every consecutive part of a row: with the batch, a pointer
// per operand, the number of elements, and where the sums of a batch wait for the next.
template <typename Use>
class Walker {
  public:
    Walker(const Walk& walk, Use use) : walk_(walk), use_(use), kinds_(walk.operands.size(), Kind::consecutive) {
        const Plan& plan = walk.plan;
        pitch_ = (std::min(walk.block, walk.piece) + 16) * plan.item + 64;
        for (size_t k = 0; k < kinds_.size(); ++k) {
            if (!plan.rows[k].table.empty()) kinds_[k] = Kind::scattered;
        }
        size_t most = 0;
        for (const Batch& batch : walk.batches) {
            most = std::max(most, batch.filed.size());
            for (size_t k : batch.filed) kinds_[k] = Kind::filed;
        }
        for (size_t i = 0; i < most; ++i)
            records_.emplace_back(new char[(plan.count + 512) * plan.item * walk.together]);
        buffers_.resize(kinds_.size());
        for (size_t k = 0; k < kinds_.size(); ++k) {
            const int64_t rows = kinds_[k] == Kind::filed ? walk.together : 1;
            if (kinds_[k] != Kind::consecutive) buffers_[k].reset(new char[rows * pitch_]);
        }
        if (walk.batches.size() > 1) {
            sums_pitch_ = plan.count * (plan.item == 8 ? 8 : 4) + 256;
            sums_.reset(new char[walk.together * sums_pitch_]);
        }
        bases_.resize(walk.together * kinds_.size());
        pointers_.resize(kinds_.size());
        const int64_t bytes = walk.piece * plan.item;
        lead_ = (std::max<int64_t>(1, kAhead / bytes) + walk.together - 1) / walk.together * walk.together;
    }

    void chunk(int64_t index) {
        const int64_t jobs = walk_.plan.outer * walk_.pieces;
        end_ = std::min(jobs, (index + 1) * walk_.chunk);
        for (int64_t job = index * walk_.chunk; job < end_; job += walk_.together) {
            for (int64_t r = 0; r < walk_.together; ++r) {
                const int64_t row = (job + std::min(r, end_ - 1 - job)) / walk_.pieces;
                for (size_t k = 0; k < kinds_.size(); ++k) bases_[k * walk_.together + r] = base(k, row);
            }
            for (size_t b = 0; b < walk_.batches.size(); ++b) group(b, job);
        }
    }

  private:
    enum class Kind { consecutive, scattered, filed };

    char* base(size_t operand, int64_t row) const {
        return static_cast<char*>(walk_.operands[operand].tensor.data) +
               walk_.plan.offset(operand, row) * walk_.plan.item;
    }

    void group(size_t b, int64_t job) {
        const Batch& batch = walk_.batches[b];
        for (size_t i = 0; i < batch.filed.size(); ++i) file(batch, i, job);
        const int64_t from = job % walk_.pieces * walk_.piece, to = std::min(from + walk_.piece, walk_.plan.count);
        for (int64_t begin = from; begin < to; begin += walk_.block) {
            const int64_t count = std::min(walk_.block, to - begin);
            for (size_t i = 0; i < batch.filed.size(); ++i) {
                const size_t k = batch.filed[i];
                walk_.kernels.collect_filed(walk_.plan.item, records_[i].get(), walk_.plan.rows[k].table.data() + begin,
                                            (count + 15) / 16 * 16, buffers_[k].get(), pitch_);
            }
            for (int64_t r = 0; r < std::min(walk_.together, end_ - job); ++r) {
                ask_next(b, job, r, begin, count);
                part(b, r, begin, count);
            }
        }
    }

    // While the rows of one operand are filed, memory brings what is wanted after them: the rows of the next one, or
    // all that is not filed. While those are blended it brings what is filed next.
    void file(const Batch& batch, size_t i, int64_t job) {
        const size_t k = batch.filed[i];
        const char* const* rows = bases_.data() + k * walk_.together;
        const char* const* ahead = nullptr;
        for (size_t other = batch.begin; other < batch.end; ++other) {
            const bool next = i + 1 < batch.filed.size() ? other == batch.filed[i + 1] : kinds_[other] != Kind::filed;
            if (!next || !walk_.plan.rows[other].dense) continue;
            if (!ahead) {
                ahead = bases_.data() + other * walk_.together;
                continue;
            }
            for (int64_t r = 0; r < std::min(walk_.together, end_ - job); ++r) ask(other, job + r, 0, walk_.plan.count);
        }
        walk_.kernels.file(walk_.plan.item, rows, ahead, walk_.plan.count, records_[i].get());
    }

    void ask_next(size_t b, int64_t job, int64_t r, int64_t begin, int64_t count) {
        const bool last = b + 1 == walk_.batches.size();
        const Batch& next = walk_.batches[last ? 0 : b + 1];
        const int64_t there = r + (last ? job + lead_ : job);
        if (!next.filed.empty()) return ask(next.filed[0], there, begin, count);
        for (size_t k = next.begin; k < next.end; ++k) ask(k, there, begin, count);
    }

    // The processor foresees neither entries or rows in another order than that of memory nor several rows at once.
    void ask(size_t operand, int64_t job, int64_t begin, int64_t count) {
        const bool foreseen = walk_.together == 1 && kinds_[operand] == Kind::consecutive && !walk_.plan.jumps(operand);
        if (foreseen || walk_.pieces > 1 || !walk_.plan.rows[operand].dense || job >= end_) return;
        walk_.kernels.prefetch(base(operand, job) + begin * walk_.plan.item, count * walk_.plan.item);
    }

    void part(size_t b, int64_t r, int64_t begin, int64_t count) {
        const Batch& batch = walk_.batches[b];
        if (walk_.written) locate(0, r, begin, count, false);
        for (size_t k = batch.begin; k < batch.end; ++k) locate(k, r, begin, count, true);
        PartialSums partial;
        if (sums_) {
            partial.sums = sums_.get() + r * sums_pitch_ + begin * (walk_.plan.item == 8 ? 8 : 4);
            partial.begins = b == 0;
            partial.ends = b + 1 == walk_.batches.size();
        }
        use_(batch, pointers_.data(), count, partial);
        if (walk_.written && kinds_[0] == Kind::scattered && partial.ends) {
            walk_.kernels.spread(walk_.plan.item, pointers_[0], part_of(0, begin, count), const_cast<char*>(bases_[r]));
        }
    }

    // Where a part of a row lies consecutively: in its tensor, or in a buffer, brought together there if it is read.
    void locate(size_t k, int64_t r, int64_t begin, int64_t count, bool read) {
        char* row = const_cast<char*>(bases_[k * walk_.together + r]);
        pointers_[k] = kinds_[k] == Kind::consecutive ? row + begin * walk_.plan.item
                                                      : buffers_[k].get() + (kinds_[k] == Kind::filed ? r * pitch_ : 0);
        if (read && kinds_[k] == Kind::scattered) {
            walk_.kernels.collect(walk_.plan.item, row, walk_.ends[k], part_of(k, begin, count), pointers_[k]);
        }
    }

    RowTable part_of(size_t operand, int64_t begin, int64_t count) const {
        const int64_t run = walk_.plan.run;
        return {walk_.plan.rows[operand].table.data() + begin / run, count / run, run};
    }

    const Walk& walk_;
    Use use_;
    std::vector<Kind> kinds_;
    std::vector<std::unique_ptr<char[]>> buffers_, records_;
    std::unique_ptr<char[]> sums_;
    std::vector<const char*> bases_;
    std::vector<char*> pointers_;
    int64_t pitch_ = 0, sums_pitch_ = 0, lead_ = 1, end_ = 0;
};

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
    std::vector<double> weights;
    for (const PermutedTerm& term : terms) {
        if (term.weight == 0.0) continue;
        operands.push_back({term.tensor, term.perms});
        weights.push_back(term.weight);
    }
    const Walk walk(operands, true);
    const int64_t bytes = out.size() * walk.plan.item * static_cast<int64_t>(operands.size());
    bool past = bytes >= kPastCaches && walk.plan.rows[0].table.empty() && walk.batches.size() == 1;
    for (size_t k = 1; k < operands.size(); ++k) past = past && !overlap(out, operands[k].tensor);
    run_walk(walk, threads, interrupt, [&](const int64_t&) {
        return [&](const Batch& batch, char* const* pointers, int64_t count, const PartialSums& partial) {
            const int64_t n_terms = static_cast<int64_t>(batch.end - batch.begin);
            walk.kernels.blend(out.dtype, pointers[0], pointers + batch.begin, weights.data() + batch.begin - 1,
                               n_terms, count, partial, past);
        };
    });
}

std::vector<double> permuted_dots_cpu(const TensorView& with, const std::vector<PermutedTerm>& terms, int threads,
                                      Interrupt& interrupt) {
    std::vector<double> totals(terms.size(), 0.0);
    if (with.size() == 0 || terms.empty()) return totals;
    std::vector<Operand> operands{{with, {}}};
    for (const PermutedTerm& term : terms) operands.push_back({term.tensor, term.perms});
    const Walk walk(operands, false);
    const size_t k = terms.size();
    std::vector<double> sums(walk.chunks * k, 0.0);  // per chunk, so that no number of threads changes the total
    run_walk(walk, threads, interrupt, [&](const int64_t& chunk) {
        return [&](const Batch&, char* const* pointers, int64_t count, const PartialSums&) {
            walk.kernels.dot(with.dtype, pointers[0], pointers + 1, static_cast<int64_t>(k), count,
                             sums.data() + chunk * k);
        };
    });
    for (size_t i = 0; i < sums.size(); ++i) totals[i % k] += sums[i];
    return totals;
}

}  // namespace pyalign
