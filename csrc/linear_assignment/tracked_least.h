// The smallest of a stream of columns, eight at a time, and which column it is. Included by the kernels file.
#pragma once

#include "linear_assignment/eight.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

// The lowest column of the lanes that hold this value, which one does; `at` are the first columns of the
// blocks that the lanes came from.
PYALIGN_INLINE int32_t column_of_least(Eight least, Eight at, double value) {
    double blocks[8];
    store_eight(blocks, at);
    Lanes8 here = lanes_equal(least, all_eight(value));
    int32_t column = static_cast<int32_t>(blocks[lowest(here)]) + lowest(here);
    for (here &= here - 1; here; here &= here - 1) {
        const int32_t other = static_cast<int32_t>(blocks[lowest(here)]) + lowest(here);
        column = other < column ? other : column;
    }
    return column;
}

// The smallest of a stream of columns, lane by lane, and where it came from.
struct TrackedLeast {
    Eight least = all_eight(kInfinity), at = all_eight(0.0);

    PYALIGN_METHOD void add(Eight block, Eight key) {
        at = choose_less(key, least, block, at);
        least = lesser(key, least);
    }

    PYALIGN_METHOD void result(Smallest* s) const {
        s->first = least_of(least);
        s->first_at = s->first < kInfinity ? column_of_least(least, at, s->first) : -1;
    }
};

// The two smallest.
struct TrackedPair {
    Eight first = all_eight(kInfinity), second = all_eight(kInfinity), at = all_eight(0.0);

    // The columns of both; among equals the earlier block stays.
    PYALIGN_METHOD void add(const TrackedPair& other) {
        at = choose_less(other.first, first, other.at, choose_less(first, other.first, at, lesser(at, other.at)));
        second = lesser(greater(first, other.first), lesser(second, other.second));
        first = lesser(first, other.first);
    }

    PYALIGN_METHOD void add(Eight block, Eight key) {
        at = choose_less(key, first, block, at);
        second = lesser(greater(first, key), second);
        first = lesser(key, first);
    }

    PYALIGN_METHOD void result(Smallest* s) const {
        two_least_of(first, second, &s->first, &s->second);
        s->first_at = s->first < kInfinity ? column_of_least(first, at, s->first) : -1;
    }
};

}  // namespace
}  // namespace PYALIGN_SIMD
}  // namespace pyalign
