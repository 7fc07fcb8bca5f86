// A row of permuted entries is first brought together in a buffer that stays in the caches, by loads and stores of
// single entries, of runs, or of records that hold the same entry of several rows; consecutive rows are then blended.
#include "permuted_lerp/permuted_lerp_kernels.h"

#include "core/real_vector.h"
#include "core/vector.h"
#include "permuted_lerp/records.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

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

#if defined(PYALIGN_HAS_ZIP)
// A record of few entries saves too little.
int64_t rows_at_once(int64_t item) {
    return kRecord / item >= 8 ? kRecord / item : 0;
}

void file(int64_t item, const char* const* rows, const char* const* ahead, int64_t count, char* records) {
    item == 2 ? file_as<uint16_t>(rows, ahead, count, records) : file_as<float>(rows, ahead, count, records);
}

void collect_filed(int64_t item, const char* records, const int64_t* table, int64_t count, char* to, int64_t pitch) {
    item == 2 ? collect_filed_as<uint16_t>(records, table, count, to, pitch)
              : collect_filed_as<float>(records, table, count, to, pitch);
}

void add_filed(DType dtype, const FiledTerm* terms, int64_t n_terms, int64_t count, char* sums, int64_t pitch,
               bool begins) {
    dtype == DType::f16    ? add_filed_as<Half>(terms, n_terms, count, sums, pitch, begins)
    : dtype == DType::bf16 ? add_filed_as<BFloat>(terms, n_terms, count, sums, pitch, begins)
                           : add_filed_as<float>(terms, n_terms, count, sums, pitch, begins);
}
#else
int64_t rows_at_once(int64_t) {
    return 0;
}
void file(int64_t, const char* const*, const char* const*, int64_t, char*) {}
void collect_filed(int64_t, const char*, const int64_t*, int64_t, char*, int64_t) {}
void add_filed(DType, const FiledTerm*, int64_t, int64_t, char*, int64_t, bool) {}
#endif

// The sums before, if there are any, and the weighted pairs that load_term(t, k) gives. The first term of all is no
// sum, which would turn -0 into 0.
template <typename Element, typename Real, int kPairs, typename Load>
PYALIGN_INLINE void add_terms(Pair<Real> (&sum)[kPairs], const Real* before, const double* weights, int64_t n_terms,
                              Load load_term) {
    const bool first = !before && n_terms > 0;
    const auto weight = broadcast(first ? static_cast<Real>(weights[0]) : Real(0));
    for (int k = 0; k < kPairs; ++k) {
        if (before) {
            sum[k] = load_sums<Element>(before + k * 2 * Lanes<Real>::count);
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

template <typename Element>
struct Blend {
    typedef RealOf<Element> Real;
    static constexpr int kPair = PairCount<Element>::value;
    Element* out;
    const Real* sums;
    const char* const* terms;
    const double* weights;
    int64_t n_terms;

    const Element* term(int64_t t, int64_t at) const { return reinterpret_cast<const Element*>(terms[t]) + at; }

    template <int kPairs, bool kPast>
    void pairs(int64_t begin) const {
        Pair<Real> sum[kPairs];
        add_terms<Element>(sum, sums ? sums + begin : sums, weights, n_terms,
                           [&](int64_t t, int k) { return load_pair(term(t, begin + k * kPair)); });
        for (int k = 0; k < kPairs; ++k) store_pair<kPast>(out + begin + k * kPair, sum[k]);
    }

    // Fewer elements than a pair has, by way of a whole one, so that they are rounded alike.
    void few(int64_t begin, int64_t count) const {
        alignas(64) Element some[kPair] = {};
        alignas(64) Real begun[kPair] = {};
        if (sums) std::memcpy(begun, sums + begin, count * sizeof(Real));
        const Real* before = sums ? begun : nullptr;
        Pair<Real> sum[1];
        add_terms<Element>(sum, before, weights, n_terms, [&](int64_t t, int) {
            std::memcpy(some, term(t, begin), count * sizeof(Element));
            return load_pair(static_cast<const Element*>(some));
        });
        store_pair<false>(static_cast<Element*>(some), sum[0]);
        std::memcpy(out + begin, some, count * sizeof(Element));
    }

    template <bool kPast>
    void all(int64_t count) const {
        int64_t i = 0;
        if (kPast) {  // such stores need aligned addresses
            const int64_t ahead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(out) % 64 / sizeof(Element));
            const int64_t head = ahead < count ? ahead : count;
            for (; i < head; i += kPair) few(i, head - i < kPair ? head - i : kPair);
            i = head;
        }
        for (; i + 2 * kPair <= count; i += 2 * kPair) pairs<2, kPast>(i);
        for (; i + kPair <= count; i += kPair) pairs<1, kPast>(i);
        if (i < count) few(i, count - i);
    }
};

// Of a row that is read from its beginning on, the processor fetches the rest of a page by itself once it has seen the
// first lines, and has more reads under way then than it lets a program ask for.
void prefetch_soon(const char* from, int64_t bytes, bool in_order) {
    constexpr int64_t kPage = 4096, kFirstLines = 192;
    if (!in_order) return prefetch(from, bytes);
    for (int64_t at = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(from) % kPage); at < bytes; at += kPage) {
        prefetch(from + at, bytes - at < kFirstLines ? bytes - at : kFirstLines);
    }
}

template <typename Use>
PYALIGN_INLINE void with_element(DType dtype, Use use) {
    dtype == DType::f64    ? use(double())
    : dtype == DType::f16  ? use(Half())
    : dtype == DType::bf16 ? use(BFloat())
                           : use(float());
}

void blend(DType dtype, char* out, const char* sums, const char* const* terms, const double* weights, int64_t n_terms,
           int64_t count, bool past_caches) {
    with_element(dtype, [&](auto element) {
        typedef decltype(element) Element;
        const Blend<Element> work{reinterpret_cast<Element*>(out), reinterpret_cast<const RealOf<Element>*>(sums),
                                  terms, weights, n_terms};
        past_caches ? work.template all<true>(count) : work.template all<false>(count);
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
    static const LerpTable table = {collect,   spread, rows_at_once, file, collect_filed,
                                    add_filed, blend,  store_fence,  dot,  prefetch_soon};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
