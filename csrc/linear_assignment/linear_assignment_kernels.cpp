// Row scans of the assignment solver. Costs are widened to double in registers, never in memory.
#include "linear_assignment/linear_assignment_kernels.h"

#include <limits>

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int kLanes = Lanes<double>::count;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Whether the pair (a, i) comes before (b, j): by value, then by index.
PYALIGN_INLINE bool before(double a, int64_t i, double b, int64_t j) {
    return a < b || (a == b && i < j);
}

PYALIGN_INLINE void insert(Smallest& s, double value, int64_t at) {
    if (!(value < kInfinity)) return;
    if (before(value, at, s.first, s.first_at)) {
        s.second = s.first, s.second_at = s.first_at;
        s.first = value, s.first_at = at;
    } else if (before(value, at, s.second, s.second_at)) {
        s.second = value, s.second_at = at;
    }
}

template <typename Cost>
bool usable(const Cost* row, int64_t m, double sign) {
    const VectorD signs = broadcast(sign), low = broadcast(-kInfinity);
    VectorI above = index_from(-1, 0);
    int64_t j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        above = choose(less(low, load_as_double(row + j) * signs), above, index_from(0, 0));
    }
    bool all = true;
    for (int k = 0; k < kLanes; ++k) all &= above[k] != 0;
    for (; j < m; ++j) all &= sign * static_cast<double>(row[j]) > -kInfinity;
    return all;
}

template <typename Cost>
void lower(const Cost* row, int64_t m, double sign, int64_t i, double* best, int64_t* at) {
    const VectorD signs = broadcast(sign);
    const VectorI here = index_from(i, 0);
    int64_t j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        const VectorD cost = load_as_double(row + j) * signs, old = load(best + j);
        const VectorI falls = less(cost, old);
        store(best + j, choose(falls, cost, old));
        store_index(at + j, choose(falls, here, load_index(at + j)));
    }
    for (; j < m; ++j) {
        const double cost = sign * static_cast<double>(row[j]);
        if (cost < best[j]) best[j] = cost, at[j] = i;
    }
}

template <typename Cost>
Smallest smallest(const Cost* row, const double* v, int64_t m, double sign) {
    const VectorD signs = broadcast(sign);
    VectorD first = broadcast(kInfinity), second = first;
    VectorI first_at = index_from(-1, 0), second_at = first_at, index = index_from(0, 1);
    const VectorI step = index_from(kLanes, 0);
    int64_t j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        const VectorD key = load_as_double(row + j) * signs - load(v + j);
        const VectorI leads = less(key, first), follows = less(key, second);
        // What was first becomes second whenever it is beaten, so among equals the lower index stays ahead.
        second_at = choose(leads, first_at, choose(follows, index, second_at));
        second = choose(leads, first, choose(follows, key, second));
        first_at = choose(leads, index, first_at);
        first = choose(leads, key, first);
        index = next(index, step);
    }
    Smallest s{kInfinity, kInfinity, -1, -1};
    for (int k = 0; k < kLanes; ++k) {
        insert(s, first[k], first_at[k]);
        insert(s, second[k], second_at[k]);
    }
    for (; j < m; ++j) insert(s, sign * static_cast<double>(row[j]) - v[j], j);
    return s;
}

template <typename Cost>
Smallest relax(const Cost* row, const double* v, int64_t m, double sign, double h, int64_t i, double* distance,
               int64_t* from) {
    const VectorD signs = broadcast(sign), hs = broadcast(h), infinity = broadcast(kInfinity),
                  done = broadcast(-kInfinity);
    const VectorI here = index_from(i, 0), step = index_from(kLanes, 0);
    VectorD first = infinity;
    VectorI first_at = index_from(-1, 0), index = index_from(0, 1);
    int64_t j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        const VectorD reach = (load_as_double(row + j) * signs - load(v + j)) - hs, old = load(distance + j);
        const VectorI falls = less(reach, old);
        const VectorD now = choose(falls, reach, old);
        store(distance + j, now);
        store_index(from + j, choose(falls, here, load_index(from + j)));
        const VectorD key = choose(equal(now, done), infinity, now);
        const VectorI leads = less(key, first);
        first_at = choose(leads, index, first_at);
        first = choose(leads, key, first);
        index = next(index, step);
    }
    Smallest s{kInfinity, kInfinity, -1, -1};
    for (int k = 0; k < kLanes; ++k) insert(s, first[k], first_at[k]);
    for (; j < m; ++j) {
        const double reach = (sign * static_cast<double>(row[j]) - v[j]) - h;
        if (reach < distance[j]) distance[j] = reach, from[j] = i;
        if (distance[j] != -kInfinity) insert(s, distance[j], j);
    }
    return s;
}

template <typename Cost>
bool feasible(const Cost* row, const double* v, int64_t m, double sign, double u) {
    const VectorD signs = broadcast(sign), us = broadcast(u);
    VectorI broken = index_from(0, 0);
    const VectorI yes = index_from(-1, 0);
    int64_t j = 0;
    for (; j + kLanes <= m; j += kLanes) {
        broken = choose(less(load_as_double(row + j) * signs, load(v + j) + us), yes, broken);
    }
    bool any = false;
    for (int k = 0; k < kLanes; ++k) any |= broken[k] != 0;
    for (; j < m; ++j) any |= sign * static_cast<double>(row[j]) < v[j] + u;
    return !any;
}

template <typename Cost>
constexpr AssignmentKernels<Cost> kernels() {
    return {usable<Cost>, lower<Cost>, smallest<Cost>, relax<Cost>, feasible<Cost>};
}

}  // namespace

const AssignmentTable& assignment_table() {
    static const AssignmentTable table = {kernels<float>(), kernels<double>(), kernels<int32_t>(), kernels<int64_t>()};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
