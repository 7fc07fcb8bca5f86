// Row scans of the assignment solver. Costs are widened to double in registers, never in memory.
#include "linear_assignment/linear_assignment_kernels.h"

#include "linear_assignment/tracked_least.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int kKept = 24;  // of the candidates that are too many

// The last columns of a row; infinite behind them.
template <typename Cost>
PYALIGN_INLINE Eight last_costs(const Cost* row, int32_t j, int32_t m, double sign) {
    double lanes[8];
    for (int k = 0; k < 8; ++k) lanes[k] = j + k < m ? sign * static_cast<double>(row[j + k]) : kInfinity;
    return load_eight(static_cast<const double*>(lanes));
}

// Calls body(j, costs of the eight columns from j) for the whole row.
template <typename Cost, typename Body>
PYALIGN_INLINE void each_eight(const Cost* row, int32_t m, double sign, const Body& body) {
    const Eight signs = all_eight(sign);
    int32_t j = 0;
    for (; j + 8 <= m; j += 8) body(j, load_eight(row + j) * signs);
    if (j < m) body(j, last_costs(row, j, m, sign));
}

// The same with body(j, k, costs as they are, signs that they are to be multiplied with), where k alternates between 0
// and 1: what is gathered in two places does not wait for itself.
template <typename Cost, typename Body>
PYALIGN_INLINE void each_signed(const Cost* row, int32_t m, double sign, const Body& body) {
    const Eight signs = all_eight(sign);
    int32_t j = 0;
    for (; j + 16 <= m; j += 16) {
        body(j, 0, load_eight(row + j), signs);
        body(j + 8, 1, load_eight(row + j + 8), signs);
    }
    if (j + 8 <= m) body(j, 0, load_eight(row + j), signs), j += 8;
    if (j < m) body(j, 1, last_costs(row, j, m, sign), all_eight(1.0));
}

// The columns j, ..., j + 63 for which test(j, costs of eight columns, signs to multiply them with) has set bits.
template <typename Cost, typename Test>
PYALIGN_INLINE Lanes64 block_where(const Cost* row, int32_t j, int32_t m, double sign, const Test& test) {
    const Eight signs = all_eight(sign);
    Lanes64 bits = 0;
    if (j + 64 <= m) {
        for (int k = 0; k < 64; k += 8) bits |= static_cast<Lanes64>(test(j + k, load_eight(row + j + k), signs)) << k;
        return bits;
    }
    int32_t k = 0;
    for (; j + k + 8 <= m; k += 8) bits |= static_cast<Lanes64>(test(j + k, load_eight(row + j + k), signs)) << k;
    if (j + k < m) {
        bits |= static_cast<Lanes64>(test(j + k, last_costs(row, j + k, m, sign), all_eight(1.0))) << k;
    }
    return m - j < 64 ? bits & ((Lanes64{1} << (m - j)) - 1) : bits;
}

// The two smallest keys of a row. The set loses lanes where a cost is NaN.
template <typename Cost, typename KeyOf>
PYALIGN_INLINE Smallest two_smallest(const Cost* row, int32_t m, double sign, Lanes8* usable, const KeyOf& key_of) {
    TrackedPair pairs[2];
    const Eight signs = all_eight(sign), step = all_eight(16.0);
    Eight even = all_eight(0.0), odd = all_eight(8.0);
    int32_t j = 0;
    for (; j + 16 <= m; j += 16) {
        const Eight a = load_eight(row + j), b = load_eight(row + j + 8);
        *usable = lanes_ordered(*usable, a, b);
        pairs[0].add(even, key_of(j, a, signs));
        pairs[1].add(odd, key_of(j + 8, b, signs));
        even = even + step, odd = odd + step;
    }
    for (; j < m; j += 8, even = odd) {
        const Eight cost = last_costs(row, j, m, sign);
        *usable = lanes_ordered(*usable, cost, cost);
        pairs[0].add(even, key_of(j, cost, all_eight(1.0)));
    }
    pairs[0].add(pairs[1]);
    Smallest s;
    pairs[0].result(&s);
    return s;
}

template <typename Cost>
Smallest smallest_of(const Cost* row, const double* v, int32_t m, double sign, Lanes8* usable) {
    return two_smallest(row, m, sign, usable, [v](int32_t j, Eight cost, Eight signs) PYALIGN_INLINED {
        return signed_minus(cost, signs, load_eight(v + j));
    });
}

// For rows where cost - v is -inf: whether that is so because v overflows the difference.
template <typename Cost>
bool usable_costs(const Cost* row, int32_t m, double sign) {
    const Eight low = all_eight(-kInfinity);
    Lanes8 usable = 0xff;
    each_eight(row, m, sign, [&](int32_t, Eight cost) PYALIGN_INLINED { usable &= lanes_less(low, cost); });
    return usable == 0xff;
}

template <typename Cost>
bool least(const Cost* row, const double* v, int32_t m, double sign, Smallest* s) {
    Lanes8 usable = 0xff;
    if (v) {
        *s = smallest_of(row, v, m, sign, &usable);
    } else if (sign > 0.0) {
        *s = two_smallest(row, m, sign, &usable, [](int32_t, Eight cost, Eight) PYALIGN_INLINED { return cost; });
    } else {
        *s = two_smallest(row, m, sign, &usable,
                          [](int32_t, Eight cost, Eight signs) PYALIGN_INLINED { return cost * signs; });
    }
    return usable == 0xff && (s->first > -kInfinity || usable_costs(row, m, sign));
}

template <typename Cost>
Smallest smallest(const Cost* row, const double* v, int32_t m, double sign) {
    Lanes8 usable = 0xff;
    return smallest_of(row, v, m, sign, &usable);
}

template <typename Cost>
int32_t tight(const Cost* row, const double* v, int32_t m, double sign, double value, int32_t* columns) {
    const Eight values = all_eight(value);
    int32_t size = 0;
    for (int32_t j = 0; j < m; j += 64) {
        Lanes64 here = block_where(row, j, m, sign, [&](int32_t k, Eight cost, Eight signs) PYALIGN_INLINED {
            return lanes_equal(signed_minus(cost, signs, load_eight(v + k)), values);
        });
        for (; here; here &= here - 1) columns[size++] = j + lowest(here);
    }
    return size;
}

// Candidates in the order in which they were met, with their reduced costs.
struct Candidates {
    double key[kMostCandidates + 64];
    int32_t column[kMostCandidates + 64];
    int32_t size = 0;

    // Keeps the kKept smallest (the earlier among equals) and gives the smallest of the others.
    double shrink() {
        for (int32_t a = 1; a < size; ++a) {
            const double moving = key[a];
            const int32_t at = column[a];
            int32_t b = a;
            for (; b > 0 && moving < key[b - 1]; --b) key[b] = key[b - 1], column[b] = column[b - 1];
            key[b] = moving, column[b] = at;
        }
        size = kKept;
        return key[kKept];
    }
};

// The largest of eight minima over columns j mod 8: at least eight columns, on average 22, are not above it.
template <typename Cost>
PYALIGN_INLINE bool bound_of(const Cost* row, const double* v, int32_t m, double sign, double* bound) {
    Eight minima[2] = {all_eight(kInfinity), all_eight(kInfinity)};
    Lanes8 broken[2] = {};
    each_signed(row, m, sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
        broken[k] |= lanes_ordered(0xff, cost, cost) ^ 0xffu;
        minima[k] = lesser(signed_minus(cost, signs, load_eight(v + j)), minima[k]);
    });
    const Eight all = lesser(minima[0], minima[1]);
    *bound = greatest_of(all);
    return !(broken[0] | broken[1]) && (least_of(all) > -kInfinity || usable_costs(row, m, sign));
}

template <typename Cost>
int32_t choose_candidates(const Cost* row, const double* v, int32_t m, double sign, uint32_t seed, int32_t* columns,
                          double* costs, double* floor) {
    double bound;
    if (!bound_of(row, v, m, sign, &bound)) return -1;
    Candidates found;
    bool cut = false;
    const int32_t blocks = (m + 63) / 64;
    int32_t block = static_cast<int32_t>((seed * 2654435761u >> 8) % static_cast<uint32_t>(blocks));
    for (int32_t k = 0; k < blocks; ++k, block = block + 1 == blocks ? 0 : block + 1) {
        const Eight bounds = all_eight(cut || !(bound < kInfinity) ? bound : -below(-bound));
        Lanes64 here = block_where(row, 64 * block, m, sign, [&](int32_t j, Eight cost, Eight signs) PYALIGN_INLINED {
            return lanes_less(signed_minus(cost, signs, load_eight(v + j)), bounds);
        });
        for (; here; here &= here - 1) {
            const int32_t j = 64 * block + lowest(here);
            found.key[found.size] = sign * static_cast<double>(row[j]) - v[j], found.column[found.size++] = j;
        }
        if (found.size > kMostCandidates) {
            bound = found.shrink();
            cut = true;
        }
    }
    // Without a cut, all columns at the bound are candidates.
    *floor = found.size == m || !(bound < kInfinity) ? kInfinity : cut ? bound : -below(-bound);
    for (int32_t k = 0; k < found.size; ++k) {
        columns[k] = found.column[k];
        costs[k] = sign * static_cast<double>(row[found.column[k]]);
    }
    for (int32_t k = found.size; k % 8; ++k) columns[k] = 0, costs[k] = kInfinity;
    return found.size;
}

template <typename Cost>
double relax(const Cost* row, const double* v, int32_t m, double sign, double h, int32_t i, double* distance,
             int32_t* from) {
    const Eight hs = all_eight(h);
    Eight minima[2] = {all_eight(kInfinity), all_eight(kInfinity)};
    each_signed(row, m, sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
        const Eight reach = signed_minus(cost, signs, load_eight(v + j)) - hs;
        const Eight old = load_eight(static_cast<const double*>(distance + j)), now = lesser(reach, old);
        store_eight(distance + j, now);
        set_lanes(from + j, lanes_less(reach, old), i);
        minima[k] = lesser(now, minima[k]);
    });
    return least_of(lesser(minima[0], minima[1]));
}

// Writes the values in the lanes of a set, with the columns of those lanes.
template <typename ColumnOf>
PYALIGN_INLINE void append(Lanes8 here, Eight values, int32_t* columns, double* at, int32_t* count,
                           const ColumnOf& column_of) {
    if (!here) return;
    double lanes[8];
    store_eight(lanes, values);
    for (; here; here &= here - 1) {
        columns[*count] = column_of(lowest(here));
        at[(*count)++] = lanes[lowest(here)];
    }
}

template <typename Cost>
int32_t reach(const Cost* row, const double* v, int32_t m, double sign, double h, const double* distance, double limit,
              int32_t* reached, double* reached_at) {
    const Eight hs = all_eight(h), limits = all_eight(limit);
    int32_t count = 0;
    each_eight(row, m, sign, [&](int32_t j, Eight cost) PYALIGN_INLINED {
        const Eight at = (cost - load_eight(v + j)) - hs;
        append(lanes_less(at, lesser(load_eight(distance + j), limits)), at, reached, reached_at, &count,
               [j](int lane) { return j + lane; });
    });
    return count;
}

template <typename Cost>
double price(const Cost* row, const double* v, int32_t m, double sign) {
    Eight minima[2] = {all_eight(kInfinity), all_eight(kInfinity)};
    each_signed(row, m, sign, [&](int32_t j, int k, Eight cost, Eight signs) PYALIGN_INLINED {
        minima[k] = lesser(signed_minus(cost, signs, load_eight(v + j)), minima[k]);
    });
    double u = least_of(lesser(minima[0], minima[1]));
    // u + v may round up past the cost by one unit.
    for (bool feasible = false; !feasible; u = feasible ? u : below(u)) {
        Lanes8 broken = 0;
        const Eight us = all_eight(u);
        each_eight(row, m, sign,
                   [&](int32_t j, Eight cost) PYALIGN_INLINED { broken |= lanes_less(cost, load_eight(v + j) + us); });
        feasible = !broken;
    }
    return u;
}

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign

#include "linear_assignment/small_solver.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

template <typename Cost>
constexpr AssignmentKernels<Cost> kernels() {
    AssignmentKernels<Cost> all = {least<Cost>, smallest<Cost>, tight<Cost>, choose_candidates<Cost>,
                                   relax<Cost>, reach<Cost>,    price<Cost>, nullptr};
    // Half of this file's code: not made again for integers of one or two bytes, which are rare among costs.
    if constexpr (sizeof(Cost) >= 4) all.solve_small = solve_small<Cost>;
    return all;
}

// The two smallest of a stream, lane by lane.
struct Pair {
    Eight first = all_eight(kInfinity), second = all_eight(kInfinity);

    PYALIGN_METHOD void add(Eight key) {
        second = lesser(greater(first, key), second);
        first = lesser(key, first);
    }

    PYALIGN_METHOD Smallest result() const {
        Smallest s{kInfinity, kInfinity, -1};
        two_least_of(first, second, &s.first, &s.second);
        return s;
    }
};

Smallest smallest_listed(const int32_t* columns, const double* costs, int32_t size, const double* v) {
    Eight keys[kMostCandidates / 8];
    Pair pair;
    for (int32_t k = 0; k < size; k += 8) {
        keys[k / 8] = load_eight(costs + k) - gather_eight(v, columns + k);
        pair.add(keys[k / 8]);
    }
    Smallest s = pair.result();
    const Eight value = all_eight(s.first);
    for (int32_t k = 0; k < size && s.first < kInfinity; k += 8) {
        const Lanes8 here = lanes_equal(keys[k / 8], value);
        if (here) {
            s.first_at = columns[k + lowest(here)];
            break;
        }
    }
    return s;
}

int32_t reach_listed(const int32_t* columns, const double* costs, int32_t size, const double* v, double h,
                     const double* distance, double limit, int32_t* reached, double* reached_at) {
    const Eight hs = all_eight(h), limits = all_eight(limit);
    int32_t count = 0;
    for (int32_t k = 0; k < size; k += 8) {
        const Eight at = (load_eight(costs + k) - gather_eight(v, columns + k)) - hs;
        append(lanes_less(at, lesser(gather_eight(distance, columns + k), limits)), at, reached, reached_at, &count,
               [=](int lane) { return columns[k + lane]; });
    }
    return count;
}

double price_listed(const int32_t* columns, const double* costs, int32_t size, const double* v) {
    double u = smallest_listed(columns, costs, size, v).first;
    for (bool feasible = false; !feasible; u = feasible ? u : below(u)) {
        Lanes8 broken = 0;
        for (int32_t k = 0; k < size; k += 8) {
            broken |= lanes_less(load_eight(costs + k), gather_eight(v, columns + k) + all_eight(u));
        }
        feasible = !broken;
    }
    return u;
}

int32_t equal_to(const double* values, int32_t m, double value, int32_t* columns) {
    const Eight wanted = all_eight(value);
    int32_t size = 0;
    for (int32_t j = 0; j < m; j += 8) {
        for (Lanes8 here = lanes_equal(load_eight(values + j), wanted); here; here &= here - 1) {
            if (j + lowest(here) < m) columns[size++] = j + lowest(here);
        }
    }
    return size;
}

}  // namespace

const AssignmentTable& assignment_table() {
    static const AssignmentTable table = {kernels<float>(),
                                          kernels<double>(),
                                          kernels<int8_t>(),
                                          kernels<uint8_t>(),
                                          kernels<int16_t>(),
                                          kernels<int32_t>(),
                                          kernels<int64_t>(),
                                          smallest_listed,
                                          reach_listed,
                                          price_listed,
                                          equal_to};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
