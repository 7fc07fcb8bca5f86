// The tensors of a record of cross moments, as Python hands them over.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace pyalign {

constexpr std::array<const char*, 6> kRecordNames = {"count", "mean_a", "mean_b", "comoment", "square_a", "square_b"};

inline std::array<std::vector<int64_t>, 6> record_shapes(int64_t n, int64_t m, bool full) {
    return {{{},
             {n},
             {m},
             {n, m},
             full ? std::vector<int64_t>{n, n} : std::vector<int64_t>{n},
             full ? std::vector<int64_t>{m, m} : std::vector<int64_t>{m}}};
}

}  // namespace pyalign
