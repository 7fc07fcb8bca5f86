// The element types that the core knows.
#pragma once

#include <cstdint>

namespace pyalign {

enum class DType { f32, f64, f16, bf16, i8, u8, i16, i32, i64, boolean };

// 16-bit floats travel as their bits.
struct Half {
    uint16_t bits;
};
struct BFloat {
    uint16_t bits;
};

}  // namespace pyalign
