// Filed rows: record j holds entry j of several rows, so that one load or store moves that entry of all of them.
// Inlined into the kernels file, like core/vector.h.
#pragma once

#include <type_traits>

#include "core/real_vector.h"
#include "core/vector.h"
#include "permuted_lerp/permuted_lerp_kernels.h"

namespace pyalign {
namespace PYALIGN_SIMD {

template <int64_t kBytes>
PYALIGN_INLINE void move_bytes(char* to, const char* from) {
    char value[kBytes];
    std::memcpy(value, from, kBytes);
    std::memcpy(to, value, kBytes);
}

PYALIGN_INLINE void prefetch(const char* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) PYALIGN_PREFETCH_READ(from + at);
}

#if defined(PYALIGN_HAS_ZIP)
constexpr int64_t kRecord = PYALIGN_VECTOR_BYTES < 32 ? 16 : 32;  // half vectors are as fast, and need half the room
constexpr int64_t kStrip = 512;                                   // bytes of each row that are turned around together

// Row j of the result holds entry j of every row: within every 16 bytes by log2 rounds of interleaving row i with the
// one half of the rows further on, then by exchanging halves.
template <typename Item>
PYALIGN_INLINE void turn(ShortVector<Item, kRecord>* rows) {
    constexpr int kLane = 16 / sizeof(Item), kRows = kRecord / sizeof(Item);
    PYALIGN_UNROLL
    for (int part = 0; part < kRows; part += kLane) {
        PYALIGN_UNROLL
        for (int round = 1; round < kLane; round *= 2) {
            ShortVector<Item, kRecord> next[kLane];
            PYALIGN_UNROLL
            for (int i = 0; i < kLane / 2; ++i) {
                zip(rows[part + i], rows[part + i + kLane / 2], next[2 * i], next[2 * i + 1]);
            }
            PYALIGN_UNROLL
            for (int i = 0; i < kLane; ++i) rows[part + i] = next[i];
        }
    }
    if constexpr (kRecord == 32) {
        PYALIGN_UNROLL
        for (int i = 0; i < kLane; ++i) exchange<Item>(rows[i], rows[i + kLane]);
    }
}

// Strips are copied first: rows a power of two apart would push each other out of the first-level cache.
template <typename Item>
void file_as(const char* const* rows, const char* const* ahead, int64_t count, char* records) {
    constexpr int kRows = kRecord / sizeof(Item);
    constexpr int64_t kPitch = kStrip + 64;
    alignas(64) char strip[kRows * kPitch];
    const int64_t bytes = count * static_cast<int64_t>(sizeof(Item));
    for (int64_t begin = 0; begin < bytes; begin += kStrip) {
        const int64_t size = bytes - begin < kStrip ? bytes - begin : kStrip;
        for (int r = 0; r < kRows; ++r) {
            if (ahead) prefetch(ahead[r] + begin, size);
            if (size < kStrip) {
                std::memcpy(strip + r * kPitch, rows[r] + begin, size);
                continue;
            }
            for (int64_t at = 0; at < kStrip; at += kRecord) {
                move_bytes<kRecord>(strip + r * kPitch + at, rows[r] + begin + at);
            }
        }
        for (int64_t at = 0; at < size; at += kRecord) {
            ShortVector<Item, kRecord> block[kRows];
            PYALIGN_UNROLL
            for (int r = 0; r < kRows; ++r) std::memcpy(&block[r], strip + r * kPitch + at, kRecord);
            turn<Item>(block);
            char* to = records + (begin + at) * kRows;
            PYALIGN_UNROLL
            for (int r = 0; r < kRows; ++r) std::memcpy(to + r * kRecord, &block[r], kRecord);
        }
    }
}

template <typename Item>
void collect_filed_as(const char* records, const int64_t* table, int64_t count, char* to, int64_t pitch) {
    constexpr int kRows = kRecord / sizeof(Item);
    for (int64_t i = 0; i < count; i += kRows) {
        ShortVector<Item, kRecord> block[kRows];
        PYALIGN_UNROLL
        for (int r = 0; r < kRows; ++r) std::memcpy(&block[r], records + table[i + r] * kRecord, kRecord);
        turn<Item>(block);
        PYALIGN_UNROLL
        for (int r = 0; r < kRows; ++r) std::memcpy(to + r * pitch + i * sizeof(Item), &block[r], kRecord);
    }
}

typedef ShortVector<float, kRecord> RecordF;
constexpr int kRecordFloats = kRecord / 4;

// The floats of one record, in as many vectors as it takes; `row_in` says which row each lane belongs to.
PYALIGN_INLINE void load_record(const float* from, RecordF* floats) {
    std::memcpy(floats, from, kRecord);
}
PYALIGN_INLINE void load_record(const BFloat* from, RecordF* floats) {
    ShortVector<uint32_t, kRecord> bits;
    std::memcpy(&bits, from, kRecord);
    floats[0] = (RecordF)(bits << 16);
    floats[1] = (RecordF)(bits & 0xffff0000u);
}
PYALIGN_INLINE void load_record(const Half* from, RecordF* floats) {
    float lanes[2 * kRecordFloats];
    for (int k = 0; k < 2 * kRecordFloats; ++k) lanes[k] = widen(from[k]);
    std::memcpy(floats, lanes, sizeof(lanes));
}

template <typename Element>
PYALIGN_INLINE int row_in(int vector, int lane) {
    return std::is_same_v<Element, BFloat> ? 2 * lane + vector : vector * kRecordFloats + lane;
}

// The first term of all is no sum, which would turn -0 into 0.
template <typename Element>
void add_filed_as(const FiledTerm* terms, int64_t n_terms, int64_t count, char* sums, int64_t pitch, bool begins) {
    constexpr int kVectors = 4 / sizeof(Element);
    for (int64_t i = 0; i < count; i += kRecordFloats) {
        RecordF sum[kVectors][kRecordFloats];
        const auto place = [&](int v, int lane) { return sums + row_in<Element>(v, lane) * pitch + i * 4; };
        for (int v = 0; v < kVectors && !begins; ++v) {
            for (int lane = 0; lane < kRecordFloats; ++lane) std::memcpy(&sum[v][lane], place(v, lane), kRecord);
            turn<float>(sum[v]);
        }
        const auto add = [&](const FiledTerm& term, bool first) {
            const RecordF weight = RecordF{} + static_cast<float>(term.weight);
            PYALIGN_UNROLL
            for (int j = 0; j < kRecordFloats; ++j) {
                RecordF value[kVectors];
                load_record(reinterpret_cast<const Element*>(term.records + term.table[i + j] * kRecord), value);
                for (int v = 0; v < kVectors; ++v) {
                    sum[v][j] = first ? weight * value[v] : sum[v][j] + weight * value[v];
                }
            }
        };
        if (begins) add(terms[0], true);
        for (int64_t t = begins ? 1 : 0; t < n_terms; ++t) add(terms[t], false);
        for (int v = 0; v < kVectors; ++v) {
            turn<float>(sum[v]);
            for (int lane = 0; lane < kRecordFloats; ++lane) std::memcpy(place(v, lane), &sum[v][lane], kRecord);
        }
    }
}
#endif

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
