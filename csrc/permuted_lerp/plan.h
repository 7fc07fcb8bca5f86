// How permuted tensors of one shape are walked together: axes are merged where nothing moves, the innermost ones become
// a row that is handled at once, and the others are looped over.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "permuted_lerp/permuted_lerp.h"

namespace pyalign {

// A tensor and one permutation per axis, or none at all.
struct Operand {
    TensorView tensor;
    std::vector<AxisPermutation> perms;
};

// One axis of the loop: entry i of operand k lies at places[k][i], or at i * strides[k] where that is empty.
struct PlanAxis {
    int64_t extent;
    std::vector<int64_t> strides;
    std::vector<std::vector<int64_t>> places;

    bool moves() const {
        return std::any_of(places.begin(), places.end(), [](const auto& listed) { return !listed.empty(); });
    }
    int64_t offset(size_t operand, int64_t i) const {
        return places[operand].empty() ? i * strides[operand] : places[operand][i];
    }
};

// One operand's way along a row; no table where its entries are consecutive.
struct PlanRow {
    std::vector<int64_t> table;  // where each run begins, from 0 on; its last entry is repeated for whole vectors
    int64_t first = 0;           // offset of table entry 0
    bool dense = true;           // a row's entries fill the memory they span
};

struct Plan {
    static constexpr int64_t kTinyRow = 64;     // rows shorter than this are joined with the axis outside them,
    static constexpr int64_t kShortRow = 1024;  // and those shorter than this where their table stays small:
    static constexpr int64_t kTableShare = 8;   // one entry for so many of all elements
    static constexpr int64_t kLongestTable = 1 << 16;
    static constexpr int64_t kTablePadding = 16;

    int64_t item = 0;
    std::vector<PlanAxis> axes;  // outermost first
    int64_t outer = 1, count = 1;
    int64_t run = 1;  // entries that follow each other in every operand
    std::vector<PlanRow> rows;

    explicit Plan(const std::vector<Operand>& operands);
    int64_t runs() const { return count / run; }
    int64_t offset(size_t operand, int64_t outer_index) const {
        int64_t total = rows[operand].first;
        for (size_t d = axes.size(); d-- > 0;) {
            const int64_t i = d == 0 ? outer_index : outer_index % axes[d].extent;
            total += axes[d].offset(operand, i);
            if (d > 0) outer_index /= axes[d].extent;
        }
        return total;
    }
    // Whether the operand's rows come in another order than they lie in memory.
    bool jumps(size_t operand) const {
        return std::any_of(axes.begin(), axes.end(),
                           [&](const PlanAxis& axis) { return !axis.places[operand].empty(); });
    }

  private:
    void add_axis(const std::vector<Operand>& operands, int64_t d);
    void merge_axes();
    void take_row(size_t operands, int64_t size);
    void fill_row(size_t operand, const std::vector<PlanAxis>& taken);
};

inline int64_t item_size(DType dtype) {
    return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

inline Plan::Plan(const std::vector<Operand>& operands) : item(item_size(operands[0].tensor.dtype)) {
    for (int64_t d = 0; d < operands[0].tensor.dim(); ++d) {
        if (operands[0].tensor.shape[d] > 1) add_axis(operands, d);
    }
    std::stable_sort(axes.begin(), axes.end(),
                     [](const PlanAxis& p, const PlanAxis& q) { return p.strides[0] > q.strides[0]; });
    merge_axes();
    take_row(operands.size(), operands[0].tensor.size());
    for (const PlanAxis& axis : axes) outer *= axis.extent;
}

// An axis whose indices move runs is two axes: one that moves and one that does not.
inline void Plan::add_axis(const std::vector<Operand>& operands, int64_t d) {
    const int64_t extent = operands[0].tensor.shape[d];
    const auto moved = [&](const Operand& operand) {
        return !operand.perms.empty() && operand.perms[d].indices && operand.perms[d].count > 1;
    };
    int64_t shared = extent;
    for (const Operand& operand : operands) {
        if (moved(operand)) shared = std::gcd(shared, extent / operand.perms[d].count);
    }
    PlanAxis within{shared, {}, {}}, across{extent / shared, {}, {}};
    for (const Operand& operand : operands) {
        const int64_t stride = operand.tensor.strides[d];
        within.strides.push_back(stride);
        within.places.emplace_back();
        across.strides.push_back(stride * shared);
        across.places.emplace_back();
        if (!moved(operand)) continue;
        const int64_t run = extent / operand.perms[d].count;
        for (int64_t i = 0; i < extent; i += shared) {
            across.places.back().push_back((operand.perms[d].indices[i / run] * run + i % run) * stride);
        }
    }
    if (across.extent > 1) axes.push_back(std::move(across));
    if (within.extent > 1) axes.push_back(std::move(within));
}

inline void Plan::merge_axes() {
    std::vector<PlanAxis> merged;
    for (PlanAxis& axis : axes) {
        const bool consecutive =
            std::all_of(axis.strides.begin(), axis.strides.end(), [](int64_t s) { return s == 1; });
        bool joins = !merged.empty() && !merged.back().moves() && !axis.moves() &&
                     (consecutive || merged.back().extent * axis.extent <= kLongestTable);
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
    axes = std::move(merged);
}

inline void Plan::take_row(size_t operands, int64_t size) {
    rows.resize(operands);
    if (axes.empty()) return;
    const std::vector<int64_t>& strides = axes.back().strides;
    if (!axes.back().moves() && std::all_of(strides.begin(), strides.end(), [](int64_t s) { return s == 1; })) {
        count = run = axes.back().extent;
        axes.pop_back();
    }
    std::vector<PlanAxis> taken;
    const auto joins = [&](int64_t extent) {
        const int64_t listed = runs() * extent;
        if (count == 1) return true;
        return listed <= kLongestTable && (count < kTinyRow || (count < kShortRow && listed * kTableShare <= size));
    };
    while (!axes.empty() && joins(axes.back().extent)) {
        count *= axes.back().extent;
        taken.push_back(std::move(axes.back()));
        axes.pop_back();
    }
    for (size_t k = 0; k < operands; ++k) fill_row(k, taken);
    const bool tables = std::any_of(rows.begin(), rows.end(), [](const PlanRow& row) { return !row.table.empty(); });
    if (!tables) run = count;
}

inline void Plan::fill_row(size_t operand, const std::vector<PlanAxis>& taken) {
    std::vector<int64_t> table{0};
    for (size_t t = taken.size(); t-- > 0;) {
        std::vector<int64_t> finer;
        finer.reserve(table.size() * taken[t].extent + kTablePadding);
        for (int64_t base : table) {
            for (int64_t i = 0; i < taken[t].extent; ++i) finer.push_back(base + taken[t].offset(operand, i));
        }
        table.swap(finer);
    }
    bool consecutive = true;
    for (size_t i = 0; consecutive && i < table.size(); ++i) consecutive = table[i] == static_cast<int64_t>(i) * run;
    if (consecutive) return;
    PlanRow& row = rows[operand];
    const auto [least, most] = std::minmax_element(table.begin(), table.end());
    row.first = *least;
    row.dense = *most - *least + run == count;
    for (int64_t& entry : table) entry -= row.first;
    table.insert(table.end(), kTablePadding, table.back());
    row.table = std::move(table);
}

}  // namespace pyalign
