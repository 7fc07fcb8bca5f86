// The weighted sum of permuted tensors on the CPU: one read of each input and one write. Axes are merged where nothing
// moves; the innermost ones become one run, whose offsets are listed once per tensor when they are not consecutive.
#include <algorithm>
#include <numeric>
#include <vector>

#include "core/simd.h"
#include "permuted_lerp/permuted_lerp.h"
#include "permuted_lerp/permuted_lerp_kernels.h"

namespace pyalign {
namespace {

constexpr int64_t kShortRun = 256;  // runs shorter than this are joined with the axis outside them
constexpr int64_t kLongestTable = 1 << 16;
constexpr int64_t kPiece = 1 << 14;  // elements handed to a thread at once, at least

// One axis of the loop: where entry i of each operand lies. Operand 0 is out.
struct Axis {
    int64_t extent;
    std::vector<int64_t> strides;
    std::vector<AxisPermutation> perms;

    bool moves() const {
        return std::any_of(perms.begin(), perms.end(), [](const AxisPermutation& p) { return p.indices != nullptr; });
    }
    int64_t offset(size_t operand, int64_t i) const {
        const AxisPermutation& p = perms[operand];
        if (!p.indices) return i * strides[operand];
        const int64_t run = extent / p.count;
        return (p.indices[i / run] * run + i % run) * strides[operand];
    }
};

std::vector<Axis> loop_axes(const TensorView& out, const std::vector<const PermutedTerm*>& terms) {
    std::vector<Axis> axes;
    for (int64_t d = 0; d < out.dim(); ++d) {
        if (out.shape[d] == 1) continue;
        Axis axis{out.shape[d], {out.strides[d]}, {{}}};
        for (const PermutedTerm* term : terms) {
            axis.strides.push_back(term->tensor.strides[d]);
            axis.perms.push_back(term->perms[d].count > 1 ? term->perms[d] : AxisPermutation{});
        }
        axes.push_back(std::move(axis));
    }
    std::stable_sort(axes.begin(), axes.end(),
                     [](const Axis& p, const Axis& q) { return p.strides[0] > q.strides[0]; });
    std::vector<Axis> merged;
    for (Axis& axis : axes) {
        bool joins = !merged.empty() && !merged.back().moves() && !axis.moves();
        for (size_t k = 0; joins && k < axis.strides.size(); ++k) {
            joins = merged.back().strides[k] == axis.strides[k] * axis.extent;
        }
        if (joins) {
            merged.back().extent *= axis.extent;
            merged.back().strides = axis.strides;
        } else {
            merged.push_back(std::move(axis));
        }
    }
    return merged;
}

// The innermost axes as one run; tables[operand] is empty where the run is consecutive in memory.
struct Inner {
    int64_t count = 1;
    std::vector<std::vector<int64_t>> tables;
};

Inner take_inner(std::vector<Axis>& axes, size_t operands) {
    Inner inner;
    inner.tables.resize(operands);
    std::vector<Axis> taken;
    while (!axes.empty() &&
           (taken.empty() || (inner.count < kShortRun && inner.count * axes.back().extent <= kLongestTable))) {
        inner.count *= axes.back().extent;
        taken.push_back(std::move(axes.back()));
        axes.pop_back();
    }
    if (taken.empty()) return inner;
    for (size_t k = 0; k < operands; ++k) {
        if (taken.size() == 1 && !taken[0].perms[k].indices && taken[0].strides[k] == 1) continue;
        std::vector<int64_t> table{0};
        for (size_t t = taken.size(); t-- > 0;) {
            std::vector<int64_t> finer;
            finer.reserve(table.size() * taken[t].extent);
            for (int64_t base : table) {
                for (int64_t i = 0; i < taken[t].extent; ++i) finer.push_back(base + taken[t].offset(k, i));
            }
            table.swap(finer);
        }
        bool consecutive = true;
        for (int64_t i = 0; consecutive && i < inner.count; ++i) consecutive = table[i] == i;
        if (!consecutive) inner.tables[k] = std::move(table);
    }
    return inner;
}

int64_t item_size(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

}  // namespace

void permuted_sum_cpu(const TensorView& out, const std::vector<PermutedTerm>& terms, int threads,
                      Interrupt& interrupt) {
    if (out.size() == 0) return;
    std::vector<const PermutedTerm*> used;
    for (const PermutedTerm& term : terms) {
        if (term.weight != 0.0) used.push_back(&term);
    }
    const size_t operands = used.size() + 1;
    std::vector<Axis> axes = loop_axes(out, used);
    const Inner inner = take_inner(axes, operands);
    int64_t outer = 1;
    for (const Axis& axis : axes) outer *= axis.extent;

    const int64_t item = item_size(out.dtype);
    const int64_t splits = outer >= 4 * threads ? 1 : (inner.count + kPiece - 1) / kPiece;
    const int64_t piece = (inner.count + splits - 1) / splits;
    const int64_t grain = std::max<int64_t>(1, kPiece / piece);
    const int64_t jobs = outer * splits;
    const LerpTable& kernels = PYALIGN_SELECT(lerp_table);

    run_each(threads, (jobs + grain - 1) / grain, interrupt, [&](int64_t chunk) {
        std::vector<LerpRun> runs(operands);
        for (int64_t job = chunk * grain; job < std::min(jobs, (chunk + 1) * grain); ++job) {
            const int64_t begin = job % splits * piece, count = std::min(piece, inner.count - begin);
            if (count <= 0) continue;
            for (size_t k = 0; k < operands; ++k) {
                const TensorView& tensor = k == 0 ? out : used[k - 1]->tensor;
                int64_t rest = job / splits, offset = 0;
                for (size_t d = axes.size(); d-- > 0;) {
                    offset += axes[d].offset(k, rest % axes[d].extent);
                    rest /= axes[d].extent;
                }
                const int64_t* table = inner.tables[k].empty() ? nullptr : inner.tables[k].data() + begin;
                if (!table) offset += begin;
                runs[k] = {static_cast<char*>(tensor.data) + offset * item, table, k == 0 ? 0.0 : used[k - 1]->weight};
            }
            kernels.blend(out.dtype, runs[0], runs.data() + 1, static_cast<int64_t>(operands) - 1, count);
        }
    });
}

}  // namespace pyalign
