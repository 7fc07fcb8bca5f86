// A row of permuted entries is first brought together in a buffer that stays in the caches, by loads and stores of
// single entries, of runs, or of records that hold the same entry of several rows; consecutive rows are then blended.
#include "permuted_lerp/permuted_lerp_kernels.h"

#include "core/real_vector.h"
#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

template <int64_t kBytes>
PYALIGN_INLINE void move_bytes(char* to, const char* from) {
    char value[kBytes];
    std::memcpy(value, from, kBytes);
    std::memcpy(to, value, kBytes);
}

template <typename Item>
void collect_items(const Item* from, const int64_t* table, int64_t count, Item* to) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const Item v0 = from[table[i]], v1 = from[table[i + 1]], v2 = from[table[i + 2]], v3 = from[table[i + 3]];
        to[i] = v0;
        to[i + 1] = v1;
        to[i + 2] = v2;
        to[i + 3] = v3;
    }
    for (; i < count; ++i) to[i] = from[table[i]];
}

// Whole steps are copied: what is written behind a run is overwritten by the next one.
template <int64_t kStep>
void collect_runs(int64_t item, const char* from, const char* end, const RowTable& row, char* to) {
    const int64_t bytes = row.run * item, steps = (bytes + kStep - 1) / kStep;
    for (int64_t i = 0; i < row.runs; ++i, to += bytes) {
        const char* source = from + row.table[i] * item;
        if (end - source < steps * kStep) {
            std::memcpy(to, source, bytes);
            continue;
        }
        for (int64_t step = 0; step < steps; ++step) move_bytes<kStep>(to + step * kStep, source + step * kStep);
    }
}

void collect(int64_t item, const char* from, const char* end, const RowTable& row, char* to) {
    if (row.run > 1)
        return row.run * item > 16 ? collect_runs<32>(item, from, end, row, to)
                                   : collect_runs<16>(item, from, end, row, to);
    const auto as = [&](auto one) {
        typedef decltype(one) Item;
        collect_items(reinterpret_cast<const Item*>(from), row.table, row.runs, reinterpret_cast<Item*>(to));
    };
    item == 2 ? as(uint16_t()) : item == 4 ? as(uint32_t()) : as(uint64_t());
}

void spread(int64_t item, const char* from, const RowTable& row, char* to) {
    const int64_t bytes = row.run * item;
    for (int64_t i = 0; i < row.runs; ++i) std::memcpy(to + row.table[i] * item, from + i * bytes, bytes);
}

void prefetch(const char* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) PYALIGN_PREFETCH_READ(from + at);
}

#if defined(PYALIGN_HAS_ZIP)
constexpr int64_t kRecord = PYALIGN_VECTOR_BYTES < 32 ? 16 : 32;  // half vectors are as fast, and need half the room
constexpr int64_t kStrip = 512;                                   // bytes of each row that are turned around together

// records[j] = entry j of every row, by log2(n) rounds of interleaving row i with row i + n / 2.
template <typename Item>
PYALIGN_INLINE void turn(ShortVector<Item, kRecord>* rows) {
    constexpr int kRows = kRecord / sizeof(Item);
    PYALIGN_UNROLL
    for (int round = 1; round < kRows; round *= 2) {
        ShortVector<Item, kRecord> next[kRows];
        PYALIGN_UNROLL
        for (int i = 0; i < kRows / 2; ++i) zip(rows[i], rows[i + kRows / 2], next[2 * i], next[2 * i + 1]);
        PYALIGN_UNROLL
        for (int i = 0; i < kRows; ++i) rows[i] = next[i];
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

// A record of few entries saves too little.
int64_t rows_at_once(int64_t item) {
    return kRecord / item >= 8 ? kRecord / item : 0;
}

void file(int64_t item, const char* const* rows, const char* const* ahead, int64_t count, char* records) {
    item == 2 ? file_as<uint16_t>(rows, ahead, count, records) : file_as<uint32_t>(rows, ahead, count, records);
}

void collect_filed(int64_t item, const char* records, const int64_t* table, int64_t count, char* to, int64_t pitch) {
    item == 2 ? collect_filed_as<uint16_t>(records, table, count, to, pitch)
              : collect_filed_as<uint32_t>(records, table, count, to, pitch);
}
#else
int64_t rows_at_once(int64_t) {
    return 0;
}
void file(int64_t, const char* const*, const char* const*, int64_t, char*) {}
void collect_filed(int64_t, const char*, const int64_t*, int64_t, char*, int64_t) {}
#endif

template <typename Real, int kPairs>
PYALIGN_INLINE void keep_sums(const Pair<Real> (&sum)[kPairs], const PartialSums& partial, int64_t begin) {
    Real* after = reinterpret_cast<Real*>(partial.sums) + begin;
    for (int k = 0; k < kPairs; ++k) store_pair<false, Real>(after + k * 2 * Lanes<Real>::count, sum[k]);
}

// The weighted sum of the pairs that load(t, k) gives, going on from `begin` of the partial sums. The first term of all
// is no sum, which would turn -0 into 0.
template <typename Real, int kPairs, typename Load>
PYALIGN_INLINE void add_terms(Pair<Real> (&sum)[kPairs], const double* weights, int64_t n_terms,
                              const PartialSums& partial, int64_t begin, Load load_term) {
    const bool first = partial.begins && n_terms > 0;
    const auto weight = broadcast(first ? static_cast<Real>(weights[0]) : Real(0));
    const Real* before = reinterpret_cast<const Real*>(partial.sums) + begin;
    for (int k = 0; k < kPairs; ++k) {
        if (!partial.begins) {
            sum[k] = load_pair<Real>(before + k * 2 * Lanes<Real>::count);
        } else if (first) {
            const Pair<Real> value = load_term(0, k);
            for (int h = 0; h < 2; ++h) sum[k].half[h] = weight * value.half[h];
        } else {
            sum[k].half[0] = sum[k].half[1] = weight;
        }
    }
    for (int64_t t = first ? 1 : 0; t < n_terms; ++t) {
        const auto factor = broadcast(static_cast<Real>(weights[t]));
        for (int k = 0; k < kPairs; ++k) {
            const Pair<Real> value = load_term(t, k);
            for (int h = 0; h < 2; ++h) sum[k].half[h] = sum[k].half[h] + factor * value.half[h];
        }
    }
}

template <int kPairs, bool kPast, typename Element>
PYALIGN_INLINE void blend_pairs(Element* out, const char* const* terms, const double* weights, int64_t n_terms,
                                const PartialSums& partial, int64_t begin) {
    constexpr int kPair = PairCount<Element>::value;
    Pair<RealOf<Element>> sum[kPairs];
    add_terms(sum, weights, n_terms, partial, begin, [&](int64_t t, int k) {
        return load_pair(reinterpret_cast<const Element*>(terms[t]) + begin + k * kPair);
    });
    if (!partial.ends) return keep_sums(sum, partial, begin);
    for (int k = 0; k < kPairs; ++k) store_pair<kPast>(out + begin + k * kPair, sum[k]);
}

// Fewer elements than a pair has, by way of a whole one, so that they are rounded alike.
template <typename Element>
void blend_few(Element* out, const char* const* terms, const double* weights, int64_t n_terms,
               const PartialSums& partial, int64_t begin, int64_t count) {
    alignas(64) Element few[PairCount<Element>::value] = {};
    Pair<RealOf<Element>> sum[1];
    add_terms(sum, weights, n_terms, partial, begin, [&](int64_t t, int) {
        std::memcpy(few, reinterpret_cast<const Element*>(terms[t]) + begin, count * sizeof(Element));
        return load_pair(static_cast<const Element*>(few));
    });
    if (!partial.ends) return keep_sums(sum, partial, begin);
    store_pair<false>(static_cast<Element*>(few), sum[0]);
    std::memcpy(out + begin, few, count * sizeof(Element));
}

template <bool kPast, typename Element>
void blend_as(Element* out, const char* const* terms, const double* weights, int64_t n_terms, int64_t count,
              const PartialSums& partial) {
    constexpr int kPair = PairCount<Element>::value;
    int64_t i = 0;
    if (kPast) {  // such stores need aligned addresses
        const int64_t ahead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(out) % 64 / sizeof(Element));
        const int64_t head = ahead < count ? ahead : count;
        for (; i < head; i += kPair)
            blend_few(out, terms, weights, n_terms, partial, i, head - i < kPair ? head - i : kPair);
        i = head;
    }
    for (; i + 2 * kPair <= count; i += 2 * kPair) blend_pairs<2, kPast>(out, terms, weights, n_terms, partial, i);
    for (; i + kPair <= count; i += kPair) blend_pairs<1, kPast>(out, terms, weights, n_terms, partial, i);
    if (i < count) blend_few(out, terms, weights, n_terms, partial, i, count - i);
}

template <typename Use>
PYALIGN_INLINE void with_element(DType dtype, Use use) {
    dtype == DType::f64    ? use(double())
    : dtype == DType::f16  ? use(Half())
    : dtype == DType::bf16 ? use(BFloat())
                           : use(float());
}

void blend(DType dtype, char* out, const char* const* terms, const double* weights, int64_t n_terms, int64_t count,
           const PartialSums& partial, bool past_caches) {
    with_element(dtype, [&](auto element) {
        auto* to = reinterpret_cast<decltype(element)*>(out);
        past_caches ? blend_as<true>(to, terms, weights, n_terms, count, partial)
                    : blend_as<false>(to, terms, weights, n_terms, count, partial);
    });
}

template <typename Element>
double dot_as(const Element* with, const Element* term, int64_t count) {
    constexpr int kPair = PairCount<Element>::value;
    VectorD sum[4] = {broadcast(0.0), broadcast(0.0), broadcast(0.0), broadcast(0.0)};
    int64_t i = 0;
    for (; i + kPair <= count; i += kPair) add_products(load_pair(with + i), load_pair(term + i), sum);
    if (i < count) {
        alignas(64) Element few[2][kPair] = {};
        std::memcpy(few[0], with + i, (count - i) * sizeof(Element));
        std::memcpy(few[1], term + i, (count - i) * sizeof(Element));
        const Element *left = few[0], *right = few[1];
        add_products(load_pair(left), load_pair(right), sum);
    }
    return sum_of<double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void dot(DType dtype, const char* with, const char* const* terms, int64_t n_terms, int64_t count, double* sums) {
    with_element(dtype, [&](auto element) {
        typedef decltype(element) Element;
        for (int64_t t = 0; t < n_terms; ++t) {
            sums[t] +=
                dot_as(reinterpret_cast<const Element*>(with), reinterpret_cast<const Element*>(terms[t]), count);
        }
    });
}

}  // namespace

const LerpTable& lerp_table() {
    static const LerpTable table = {collect, spread,      rows_at_once, file,    collect_filed,
                                    blend,   store_fence, dot,          prefetch};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
