// The walk of permuted tensors of one shape: which rows are filed, what is handled at once, and one thread's way
// through its share.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "core/scratch.h"
#include "core/simd.h"
#include "permuted_lerp/permuted_lerp_kernels.h"
#include "permuted_lerp/plan.h"

namespace pyalign {

// The highest address that belongs to a tensor.
inline const char* end_of(const TensorView& tensor) {
    int64_t reach = 1;
    for (int64_t d = 0; d < tensor.dim(); ++d) reach += std::max<int64_t>(0, tensor.strides[d]) * (tensor.shape[d] - 1);
    return static_cast<const char*>(tensor.data) + reach * item_size(tensor.dtype);
}

inline bool overlap(const TensorView& x, const TensorView& y) {
    return x.data < end_of(y) && y.data < end_of(x);
}

// Operands that are read in one go: those whose rows are filed, and those that are used row by row. `summed`: what is
// filed is added up as it is filed; else it is used row by row too.
struct Batch {
    std::vector<size_t> filed, by_row;
    bool summed = false;
};

// What all threads share: the plan, and how it is cut into groups of rows and chunks of groups, whatever their number.
struct Walk {
    static constexpr int64_t kPiece = 1 << 14;    // elements of a long row that are handled at once
    static constexpr int64_t kBlock = 512;        // elements that are collected before they are blended
    static constexpr int64_t kFiled = 640 << 10;  // bytes of filed rows: they stay in a second-level cache of 1 MiB
    static constexpr int64_t kChunk = 1 << 18;    // elements handed to a thread at once

    std::vector<Operand> operands;
    std::vector<double> weights;  // one per operand, where operand 0 is the result; none where nothing is written
    Plan plan;
    const LerpTable& kernels = PYALIGN_SELECT(lerp_table);
    std::vector<Batch> batches;
    std::vector<const char*> ends;
    std::vector<int64_t> in_order;  // the table of a filed operand that has none
    int64_t together = 1, block = kBlock, piece = 0, pieces = 1, chunk = 1, chunks = 1;

    Walk(std::vector<Operand> given, std::vector<double> factors)
        : operands(std::move(given)), weights(std::move(factors)), plan(operands) {
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

    bool written() const { return !weights.empty(); }
    bool summed() const { return batches[0].summed; }

  private:
    // Where another thread may be writing, runs are read to their own ends only.
    const char* readable_end(const Operand& operand) const {
        const bool shared = written() && overlap(operand.tensor, operands[0].tensor);
        return shared ? static_cast<const char*>(operand.tensor.data) : end_of(operand.tensor);
    }

    // Filed rows have to stay in the second-level cache: as many at a time as do. All are added up in their order, so
    // that the sum has the same bits wherever its tensors were brought together.
    void choose_batches() {
        const int64_t rows = kernels.rows_at_once(plan.item), bytes = rows * plan.count * plan.item;
        const bool files = rows > 0 && plan.run == 1 && plan.outer >= 2 * rows && bytes <= kFiled;
        std::vector<size_t> all, filed;
        bool dense = true;
        for (size_t k = written() ? 1 : 0; k < operands.size(); ++k) {
            all.push_back(k);
            dense = dense && plan.rows[k].dense;
            if (files && !plan.rows[k].table.empty() && plan.rows[k].dense) filed.push_back(k);
        }
        const size_t fit = files ? static_cast<size_t>(kFiled / bytes) : 0;
        const bool sums = written() && filed.size() > 1 && dense;
        if (!sums) {
            if (written() && filed.size() > fit) filed.clear();
            if (!filed.empty()) together = rows;
            batches.push_back({std::move(filed), std::move(all), false});
            return;
        }
        together = rows;
        const size_t groups = (all.size() + fit - 1) / fit;
        for (size_t group = 0; group < groups; ++group) {
            const auto share = [&](size_t g) { return all.begin() + static_cast<int64_t>(all.size() * g / groups); };
            batches.push_back({{share(group), share(group + 1)}, {}, true});
        }
        in_order.resize(plan.count + Plan::kTablePadding, plan.count - 1);
        std::iota(in_order.begin(), in_order.begin() + plan.count, 0);
    }
};

// One thread's way through its chunks. `use` is called for every consecutive part of a row: with a pointer per operand
// that is used row by row, the place of the result, the number of elements, and the sums so far, if there are any.
template <typename Use>
class Walker {
  public:
    Walker(const Walk& walk, Use use) : walk_(walk), use_(use), kinds_(walk.operands.size(), Kind::consecutive) {
        const Plan& plan = walk.plan;
        pitch_ = (std::min(walk.block, walk.piece) + 16) * plan.item + 64;
        for (size_t k = 0; k < kinds_.size(); ++k) {
            if (!plan.rows[k].table.empty()) kinds_[k] = Kind::scattered;
        }
        for (const Batch& batch : walk.batches) {
            for (size_t k : batch.filed) kinds_[k] = Kind::filed;
        }
        place();
        bases_.resize(walk.together * kinds_.size());
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
    static constexpr int64_t kAhead = 16 << 10;  // bytes of each operand that are asked for ahead of their use
    enum class Kind { consecutive, scattered, filed };

    // All working memory is one block, and the next call's as well: fresh pages would cost more than the work in them.
    void place() {
        const Plan& plan = walk_.plan;
        size_t most = 0, total = 0;
        for (const Batch& batch : walk_.batches) most = std::max(most, batch.filed.size());
        const auto reserve = [&](int64_t bytes) {
            const size_t begin = total;
            total += static_cast<size_t>(bytes + 63) / 64 * 64;
            return begin;
        };
        std::vector<size_t> records, buffers(kinds_.size());
        for (size_t i = 0; i < most; ++i) records.push_back(reserve((plan.count + 512) * plan.item * walk_.together));
        for (size_t k = 0; k < kinds_.size(); ++k) {
            if (kinds_[k] == Kind::scattered) buffers[k] = reserve(pitch_);
            if (kinds_[k] == Kind::filed && !walk_.summed()) buffers[k] = reserve(walk_.together * pitch_);
        }
        sums_pitch_ = ((walk_.batches.size() > 1 ? plan.count : std::min(walk_.block, walk_.piece)) + 32) * 4;
        const size_t sums = walk_.summed() ? reserve(walk_.together * sums_pitch_) : 0;
        memory_ = std::make_unique<Scratch>(total);
        char* start = memory_->template as<char>();
        for (size_t begin : records) records_.push_back(start + begin);
        for (size_t begin : buffers) buffers_.push_back(start + begin);
        sums_ = start + sums;
    }

    char* base(size_t operand, int64_t row) const {
        return static_cast<char*>(walk_.operands[operand].tensor.data) +
               walk_.plan.offset(operand, row) * walk_.plan.item;
    }

    void group(size_t b, int64_t job) {
        const Batch& batch = walk_.batches[b];
        for (size_t i = 0; i < batch.filed.size(); ++i) file(batch, i, job);
        const bool last = b + 1 == walk_.batches.size();
        const int64_t from = job % walk_.pieces * walk_.piece, to = std::min(from + walk_.piece, walk_.plan.count);
        for (int64_t begin = from; begin < to; begin += walk_.block) {
            const int64_t count = std::min(walk_.block, to - begin);
            batch.summed ? add_filed(batch, b == 0, begin, count) : collect_filed(batch, begin, count);
            for (int64_t r = 0; r < std::min(walk_.together, end_ - job); ++r) {
                ask_next(b, job, r, begin, count);
                if (last) part(batch, r, begin, count);
            }
        }
    }

    // While the rows of one operand are filed, memory brings what is wanted after them: the rows of the next one, or
    // all that is not filed. While those are blended it brings what is filed next.
    void file(const Batch& batch, size_t i, int64_t job) {
        const size_t k = batch.filed[i];
        const char* const* rows = bases_.data() + k * walk_.together;
        const char* const* ahead = nullptr;
        if (i + 1 < batch.filed.size()) {
            ahead = bases_.data() + batch.filed[i + 1] * walk_.together;
        } else {
            for (size_t other : batch.by_row) {
                if (kinds_[other] == Kind::filed || !walk_.plan.rows[other].dense) continue;
                if (!ahead) {
                    ahead = bases_.data() + other * walk_.together;
                    continue;
                }
                for (int64_t r = 0; r < std::min(walk_.together, end_ - job); ++r) {
                    ask(other, job + r, 0, walk_.plan.count);
                }
            }
        }
        walk_.kernels.file(walk_.plan.item, rows, ahead, walk_.plan.count, records_[i]);
    }

    void collect_filed(const Batch& batch, int64_t begin, int64_t count) {
        for (size_t i = 0; i < batch.filed.size(); ++i) {
            const size_t k = batch.filed[i];
            walk_.kernels.collect_filed(walk_.plan.item, records_[i], walk_.plan.rows[k].table.data() + begin,
                                        (count + 15) / 16 * 16, buffers_[k], pitch_);
        }
    }

    void add_filed(const Batch& batch, bool begins, int64_t begin, int64_t count) {
        terms_.clear();
        for (size_t i = 0; i < batch.filed.size(); ++i) {
            const size_t k = batch.filed[i];
            const std::vector<int64_t>& table = walk_.plan.rows[k].table;
            terms_.push_back({records_[i], (table.empty() ? walk_.in_order : table).data() + begin, walk_.weights[k]});
        }
        walk_.kernels.add_filed(walk_.operands[0].tensor.dtype, terms_.data(), static_cast<int64_t>(terms_.size()),
                                (count + 15) / 16 * 16, sums_at(0, begin), sums_pitch_, begins);
    }

    char* sums_at(int64_t r, int64_t begin) const {
        return sums_ + r * sums_pitch_ + (walk_.batches.size() > 1 ? begin * 4 : 0);
    }

    void ask_next(size_t b, int64_t job, int64_t r, int64_t begin, int64_t count) {
        const bool last = b + 1 == walk_.batches.size();
        const Batch& next = walk_.batches[last ? 0 : b + 1];
        const int64_t there = r + (last ? job + lead_ : job);
        if (!next.filed.empty()) return ask(next.filed[0], there, begin, count);
        for (size_t k : next.by_row) ask(k, there, begin, count);
    }

    // The processor foresees neither entries or rows in another order than that of memory nor several rows at once.
    void ask(size_t operand, int64_t job, int64_t begin, int64_t count) {
        const bool foreseen = walk_.together == 1 && kinds_[operand] == Kind::consecutive && !walk_.plan.jumps(operand);
        if (foreseen || walk_.pieces > 1 || !walk_.plan.rows[operand].dense || job >= end_) return;
        walk_.kernels.prefetch(base(operand, job) + begin * walk_.plan.item, count * walk_.plan.item,
                               walk_.together == 1 && kinds_[operand] == Kind::consecutive);
    }

    void part(const Batch& batch, int64_t r, int64_t begin, int64_t count) {
        pointers_.clear();
        for (size_t k : batch.by_row) pointers_.push_back(located(k, r, begin, count));
        char* result = nullptr;
        if (walk_.written()) {
            result = kinds_[0] == Kind::scattered ? buffers_[0] : bases_[r] + begin * walk_.plan.item;
        }
        use_(result, pointers_.data(), count, batch.summed ? sums_at(r, begin) : nullptr);
        if (walk_.written() && kinds_[0] == Kind::scattered) {
            walk_.kernels.spread(walk_.plan.item, result, part_of(0, begin, count), bases_[r]);
        }
    }

    // Where a part of a row lies consecutively: in its tensor, or in a buffer, where it is brought together.
    const char* located(size_t k, int64_t r, int64_t begin, int64_t count) {
        const char* row = bases_[k * walk_.together + r];
        if (kinds_[k] == Kind::consecutive) return row + begin * walk_.plan.item;
        if (kinds_[k] == Kind::filed) return buffers_[k] + r * pitch_;
        walk_.kernels.collect(walk_.plan.item, row, walk_.ends[k], part_of(k, begin, count), buffers_[k]);
        return buffers_[k];
    }

    RowTable part_of(size_t operand, int64_t begin, int64_t count) const {
        const int64_t run = walk_.plan.run;
        return {walk_.plan.rows[operand].table.data() + begin / run, count / run, run};
    }

    const Walk& walk_;
    Use use_;
    std::vector<Kind> kinds_;
    std::unique_ptr<Scratch> memory_;
    std::vector<char*> buffers_, records_;
    char* sums_ = nullptr;
    std::vector<char*> bases_;
    std::vector<const char*> pointers_;
    std::vector<FiledTerm> terms_;
    int64_t pitch_ = 0, sums_pitch_ = 0, lead_ = 1, end_ = 0;
};

}  // namespace pyalign
