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

// What all threads share: the plan, and how it is cut into groups of rows and chunks of groups, whatever their number.
struct Walk {
    const std::vector<Operand>& operands;
    const Plan plan;
    const LerpTable& kernels = PYALIGN_SELECT(lerp_table);
    bool written;  // operand 0 is the result
    std::vector<size_t> filed;
    std::vector<const char*> ends;
    int64_t together = 1, block = kBlock, piece = 0, pieces = 1, chunk = 1, chunks = 1;

    Walk(const std::vector<Operand>& given, bool first_is_written)
        : operands(given), plan(given), written(first_is_written) {
        for (const Operand& operand : operands) ends.push_back(readable_end(operand));
        choose_filed();
        int64_t tables = 0;
        for (const PlanRow& row : plan.rows) tables += !row.table.empty();
        if (filed.empty() && tables > 1) block = kPiece;  // else their rows would push each other out
        block =
            tables == 0 ? 4 * kBlock : (block / 64 + plan.run - 1) / plan.run * 64 * plan.run;  // begins stay aligned
        pieces = filed.empty() ? (plan.count + kPiece - 1) / kPiece : 1;
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

    void choose_filed() {
        const int64_t rows = kernels.rows_at_once(plan.item);
        if (rows == 0 || plan.run > 1 || plan.outer < 2 * rows) return;
        std::vector<size_t> candidates;
        for (size_t k = written ? 1 : 0; k < operands.size(); ++k) {
            if (!plan.rows[k].table.empty() && plan.rows[k].dense) candidates.push_back(k);
        }
        const int64_t bytes = static_cast<int64_t>(candidates.size()) * rows * plan.count * plan.item;
        if (candidates.empty() || bytes > kFiled) return;
        filed = std::move(candidates);
        together = rows;
    }
};

// One thread's way through its chunks. `use(pointers, count)` is called for every consecutive part of a row.
template <typename Use>
class Walker {
  public:
    Walker(const Walk& walk, Use use) : walk_(walk), use_(use), kinds_(walk.operands.size(), Kind::consecutive) {
        const Plan& plan = walk.plan;
        pitch_ = (std::min(walk.block, walk.piece) + 16) * plan.item + 64;
        buffers_.resize(kinds_.size());
        records_.resize(kinds_.size());
        for (size_t k = 0; k < kinds_.size(); ++k) {
            if (!plan.rows[k].table.empty()) kinds_[k] = Kind::scattered;
        }
        for (size_t k : walk.filed) {
            kinds_[k] = Kind::filed;
            records_[k].reset(new char[(plan.count + 512) * plan.item * walk.together]);
        }
        for (size_t k = 0; k < kinds_.size(); ++k) {
            const int64_t rows = kinds_[k] == Kind::filed ? walk.together : 1;
            if (kinds_[k] != Kind::consecutive) buffers_[k].reset(new char[rows * pitch_]);
        }
        bases_.resize(walk.together * kinds_.size());
        pointers_.resize(kinds_.size());
        const int64_t bytes = walk.piece * plan.item;
        lead_ = (std::max<int64_t>(1, kAhead / bytes) + walk.together - 1) / walk.together * walk.together;
    }

    void chunk(int64_t index) {
        const int64_t jobs = walk_.plan.outer * walk_.pieces;
        const int64_t end = std::min(jobs, (index + 1) * walk_.chunk);
        for (int64_t job = index * walk_.chunk; job < end; job += walk_.together) {
            group(job, std::min(walk_.together, end - job), end);
        }
    }

  private:
    enum class Kind { consecutive, scattered, filed };

    char* base(size_t operand, int64_t row) const {
        return static_cast<char*>(walk_.operands[operand].tensor.data) +
               walk_.plan.offset(operand, row) * walk_.plan.item;
    }

    void group(int64_t job, int64_t rows, int64_t end) {
        const size_t n = kinds_.size();
        const int64_t from = job % walk_.pieces * walk_.piece, to = std::min(from + walk_.piece, walk_.plan.count);
        for (int64_t r = 0; r < walk_.together; ++r) {
            for (size_t k = 0; k < n; ++k)
                bases_[k * walk_.together + r] = base(k, (job + std::min(r, rows - 1)) / walk_.pieces);
        }
        for (size_t i = 0; i < walk_.filed.size(); ++i) file(i, job, end);
        for (int64_t begin = from; begin < to; begin += walk_.block) {
            const int64_t count = std::min(walk_.block, to - begin);
            for (size_t k = walk_.written ? 1 : 0; k < n; ++k) {
                const bool after = !walk_.filed.empty() && k != walk_.filed[0];
                if (!after) ask(k, job + lead_, end, begin, count);
            }
            for (size_t k : walk_.filed) {
                walk_.kernels.collect_filed(walk_.plan.item, records_[k].get(), walk_.plan.rows[k].table.data() + begin,
                                            (count + 15) / 16 * 16, buffers_[k].get(), pitch_);
            }
            for (int64_t r = 0; r < rows; ++r) part(r, begin, count);
        }
    }

    // While the rows of one operand are filed, memory brings what is wanted after them: the rows of the next one, or
    // all that is not filed. While those are blended it brings the rows that the next group files first.
    void file(size_t index, int64_t job, int64_t end) {
        const size_t k = walk_.filed[index];
        const bool last = index + 1 == walk_.filed.size();
        std::vector<const char*> from(bases_.begin() + k * walk_.together, bases_.begin() + (k + 1) * walk_.together);
        for (int64_t begin = 0; begin < walk_.plan.count; begin += walk_.block) {
            const int64_t count = std::min(walk_.block, walk_.plan.count - begin);
            for (size_t other = walk_.written ? 1 : 0; other < kinds_.size(); ++other) {
                if (last ? kinds_[other] != Kind::filed : other == walk_.filed[index + 1]) {
                    ask(other, job, end, begin, count);
                }
            }
            walk_.kernels.file(walk_.plan.item, from.data(), count,
                               records_[k].get() + begin * walk_.plan.item * walk_.together);
            for (const char*& row : from) row += walk_.block * walk_.plan.item;
        }
    }

    void part(int64_t r, int64_t begin, int64_t count) {
        const Plan& plan = walk_.plan;
        for (size_t k = 0; k < kinds_.size(); ++k) {
            char* row = const_cast<char*>(bases_[k * walk_.together + r]);
            if (kinds_[k] == Kind::consecutive) {
                pointers_[k] = row + begin * plan.item;
                continue;
            }
            pointers_[k] = buffers_[k].get() + (kinds_[k] == Kind::filed ? r * pitch_ : 0);
            if (kinds_[k] == Kind::scattered && !(walk_.written && k == 0)) {
                walk_.kernels.collect(plan.item, row, walk_.ends[k], part_of(k, begin, count), pointers_[k]);
            }
        }
        use_(pointers_.data(), count);
        if (walk_.written && kinds_[0] == Kind::scattered) {
            walk_.kernels.spread(plan.item, pointers_[0], part_of(0, begin, count), const_cast<char*>(bases_[r]));
        }
    }

    RowTable part_of(size_t operand, int64_t begin, int64_t count) const {
        const int64_t run = walk_.plan.run;
        return {walk_.plan.rows[operand].table.data() + begin / run, count / run, run};
    }

    // The processor foresees neither entries or rows in another order than that of memory nor several rows at once.
    void ask(size_t operand, int64_t job, int64_t end, int64_t begin, int64_t count) {
        const bool foreseen = walk_.together == 1 && kinds_[operand] == Kind::consecutive && !walk_.plan.jumps(operand);
        if (foreseen || walk_.pieces > 1 || !walk_.plan.rows[operand].dense) return;
        for (int64_t r = 0; r < std::min(walk_.together, end - job); ++r) {
            walk_.kernels.prefetch(base(operand, job + r) + begin * walk_.plan.item, count * walk_.plan.item);
        }
    }

    const Walk& walk_;
    Use use_;
    std::vector<Kind> kinds_;
    std::vector<std::unique_ptr<char[]>> buffers_, records_;
    std::vector<const char*> bases_;
    std::vector<char*> pointers_;
    int64_t pitch_ = 0, lead_ = 1;
};

// Each chunk is handed to one thread; make(chunk index holder) gives what that thread does with the parts of a row.
template <typename Make>
void run_walk(const Walk& walk, int threads, Interrupt& interrupt, Make make) {
    std::atomic<int64_t> next{0};
    const int workers = static_cast<int>(std::clamp<int64_t>(threads, 1, walk.chunks));
    run_on_threads(
        workers,
        [&](int) {
            int64_t index = 0;
            Walker walker(walk, make(index));
            while ((index = next.fetch_add(1)) < walk.chunks && !interrupt.stopped()) walker.chunk(index);
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
    bool past = bytes >= kPastCaches && walk.plan.rows[0].table.empty();
    for (size_t k = 1; k < operands.size(); ++k) past = past && !overlap(out, operands[k].tensor);
    const int64_t n_terms = static_cast<int64_t>(weights.size());
    run_walk(walk, threads, interrupt, [&](const int64_t&) {
        return [&](char* const* pointers, int64_t count) {
            walk.kernels.blend(out.dtype, pointers[0], pointers + 1, weights.data(), n_terms, count, past);
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
        return [&](char* const* pointers, int64_t count) {
            walk.kernels.dot(with.dtype, pointers[0], pointers + 1, static_cast<int64_t>(k), count,
                             sums.data() + chunk * k);
        };
    });
    for (size_t i = 0; i < sums.size(); ++i) totals[i % k] += sums[i];
    return totals;
}

}  // namespace pyalign
