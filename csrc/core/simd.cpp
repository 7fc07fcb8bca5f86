#include "core/simd.h"

#include <atomic>

#if defined(PYALIGN_X86_VARIANTS) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace pyalign {
namespace {

#if defined(PYALIGN_X86_VARIANTS) && defined(_MSC_VER)
Simd detect() {
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    const bool osxsave = leaf1[2] & (1 << 27);
    if (!osxsave) return Simd::portable;
    const unsigned long long enabled = _xgetbv(0);
    const bool fma = leaf1[2] & (1 << 12), f16c = leaf1[2] & (1 << 29), avx2 = leaf7[1] & (1 << 5);
    const unsigned wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    const bool avx512 = (static_cast<unsigned>(leaf7[1]) & wanted) == wanted;
    if (!fma || !f16c || !avx2 || (enabled & 0x6) != 0x6) return Simd::portable;
    return avx512 && (enabled & 0xe6) == 0xe6 ? Simd::avx512 : Simd::avx2;
}
#elif defined(PYALIGN_X86_VARIANTS)
Simd detect() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Simd::portable;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? Simd::avx512 : Simd::avx2;
}
#else
Simd detect() {
    return Simd::portable;
}
#endif

std::atomic<int> chosen{-1};

}  // namespace

Simd best_simd() {
    static const Simd best = detect();
    return best;
}

Simd simd() {
    const int path = chosen.load(std::memory_order_relaxed);
    return path < 0 ? best_simd() : static_cast<Simd>(path);
}

const char* name_of(Simd path) {
// The compiler turns the vectors of core/vector.h into NEON's, which every such processor has.
#if defined(__aarch64__) && defined(__GNUC__)
    constexpr const char* plain = "neon";
#else
    constexpr const char* plain = "portable";
#endif
    return path == Simd::avx512 ? "avx512" : path == Simd::avx2 ? "avx2" : plain;
}

std::vector<std::string> simd_paths() {
    std::vector<std::string> names;
    for (int path = 0; path <= static_cast<int>(best_simd()); ++path) names.push_back(name_of(static_cast<Simd>(path)));
    return names;
}

bool set_simd(const std::string& name) {
    for (int path = 0; path <= static_cast<int>(best_simd()); ++path) {
        if (name == name_of(static_cast<Simd>(path))) {
            chosen.store(path);
            return true;
        }
    }
    return false;
}

}  // namespace pyalign
