// One problem as teams of GPU threads see it, and the memory that they work in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linear_assignment/team.h"

namespace pyalign {

// The cheapest columns of a row that are kept beside it.
constexpr int kListed = 32;
constexpr int32_t kNobody = 0x7fffffff;

// (n, m) costs with n <= m and unit column stride; everything else is contiguous and in the caller's orientation, in
// which rows and columns are exchanged where `exchanged`.
struct ParallelProblem {
    const void* cost;
    int64_t stride;
    int32_t n, m;
    int32_t exchanged, single;  // single: float32 costs
    double sign;
    int64_t* perm;
    double *row_duals, *col_duals, *gap, *objective;
    const double* start_columns;  // column duals and permutation of an earlier answer, or null
    const int64_t* start_perm;
    int32_t* status;  // an AssignmentOutcome; row and column of an entry that is no cost
};

// The fields that every round touches lie together: in shared memory where one block solves the problem and they fit.
struct ParallelWork {
    // Per column.
    double* v;
    uint64_t* label;  // distance from a row without a column, as bits; while rows bid, the best bid
    int32_t *row_of, *mark, *time, *parent, *root, *columns;
    // Per row.
    double *own, *price, *at, *scanned;  // cost of its pair; least cost - v; label; label at which all of it was seen
    uint64_t* bid;
    int32_t *column_of, *queues, *waiting, *want;  // two queues, of this round and of the next one
    int32_t* counts;
    uint64_t* numbers;
    // Seldom touched.
    double *costs, *floor, *sums;  // of the n x kListed listed columns; bound of all others
    uint64_t* nearest;
    int32_t *listed, *size, *chosen, *sink;
};

constexpr int kCounts = 16, kNumbers = 8, kBins = 64, kChunk = 512;

// Hands out parts of two stretches of memory; without memory it counts.
struct Carver {
    char* memory;
    size_t bytes;

    template <typename T>
    PYALIGN_MEMBER T* take(int64_t count) {
        T* part = memory ? reinterpret_cast<T*>(memory + bytes) : nullptr;
        bytes += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
        return part;
    }
};

PYALIGN_BOTH ParallelWork lay_out(int64_t n, int64_t m, Carver* hot, Carver* cold) {
    ParallelWork work;
    work.v = hot->take<double>(m), work.label = hot->take<uint64_t>(m);
    work.own = hot->take<double>(n), work.price = hot->take<double>(n), work.at = hot->take<double>(n);
    work.scanned = hot->take<double>(n), work.bid = hot->take<uint64_t>(n);
    work.row_of = hot->take<int32_t>(m), work.mark = hot->take<int32_t>(m), work.time = hot->take<int32_t>(m);
    work.parent = hot->take<int32_t>(m), work.root = hot->take<int32_t>(m), work.columns = hot->take<int32_t>(m);
    work.column_of = hot->take<int32_t>(n), work.queues = hot->take<int32_t>(2 * n);
    work.waiting = hot->take<int32_t>(n), work.want = hot->take<int32_t>(n);
    work.counts = hot->take<int32_t>(kCounts + kBins), work.numbers = hot->take<uint64_t>(kNumbers);
    work.costs = cold->take<double>(n * kListed), work.listed = cold->take<int32_t>(n * kListed);
    work.floor = cold->take<double>(n), work.sums = cold->take<double>(2 * (n / kChunk + 1) + 2 * n);
    work.nearest = cold->take<uint64_t>(n);
    work.size = cold->take<int32_t>(n), work.chosen = cold->take<int32_t>(n), work.sink = cold->take<int32_t>(n);
    return work;
}

struct ParallelBytes {
    size_t hot, cold;
};

PYALIGN_BOTH ParallelBytes parallel_bytes(int64_t n, int64_t m) {
    Carver hot{nullptr, 0}, cold{nullptr, 0};
    lay_out(n, m, &hot, &cold);
    return {hot.bytes, cold.bytes};
}

}  // namespace pyalign
