// Blends short blocks in a buffer that stays in the first-level cache, so that out may be one of the terms.
#include "permuted_lerp/permuted_lerp_kernels.h"

#include "core/vector.h"

namespace pyalign {
namespace PYALIGN_SIMD {
namespace {

constexpr int64_t kBlock = 512;

template <typename Element, typename Real>
PYALIGN_INLINE void add_term(const LerpRun& term, bool first, int64_t begin, int64_t count, Real* sum) {
    const Element* data = reinterpret_cast<const Element*>(term.data);
    const Real weight = static_cast<Real>(term.weight);
    const int64_t* table = term.table ? term.table + begin : nullptr;
    if (table && first) {
        for (int64_t k = 0; k < count; ++k) sum[k] = weight * static_cast<Real>(widen(data[table[k]]));
    } else if (table) {
        for (int64_t k = 0; k < count; ++k) sum[k] += weight * static_cast<Real>(widen(data[table[k]]));
    } else if (first) {
        for (int64_t k = 0; k < count; ++k) sum[k] = weight * static_cast<Real>(widen(data[begin + k]));
    } else {
        for (int64_t k = 0; k < count; ++k) sum[k] += weight * static_cast<Real>(widen(data[begin + k]));
    }
}

template <typename Element, typename Real>
void blend_as(const LerpRun& out, const LerpRun* terms, int64_t n_terms, int64_t count) {
    alignas(64) Real sum[kBlock];
    Element* to = reinterpret_cast<Element*>(out.data);
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t size = begin + kBlock < count ? kBlock : count - begin;
        for (int64_t k = 0; n_terms == 0 && k < size; ++k) sum[k] = Real(0);
        for (int64_t t = 0; t < n_terms; ++t) add_term<Element>(terms[t], t == 0, begin, size, sum);
        if (out.table) {
            for (int64_t k = 0; k < size; ++k) narrow(sum[k], &to[out.table[begin + k]]);
        } else {
            for (int64_t k = 0; k < size; ++k) narrow(sum[k], &to[begin + k]);
        }
    }
}

void blend(DType dtype, const LerpRun& out, const LerpRun* terms, int64_t n_terms, int64_t count) {
    switch (dtype) {
        case DType::f64:
            return blend_as<double, double>(out, terms, n_terms, count);
        case DType::f16:
            return blend_as<Half, float>(out, terms, n_terms, count);
        case DType::bf16:
            return blend_as<BFloat, float>(out, terms, n_terms, count);
        default:
            return blend_as<float, float>(out, terms, n_terms, count);
    }
}

}  // namespace

const LerpTable& lerp_table() {
    static const LerpTable table = {blend};
    return table;
}

}  // namespace PYALIGN_SIMD
}  // namespace pyalign
