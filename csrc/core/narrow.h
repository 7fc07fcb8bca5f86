// 16-bit floats to float and back, with the device's instructions or, on the host, by their bits.
#pragma once

#include "core/block.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pyalign {

PYALIGN_BOTH float widen_bf16(uint16_t bits) {
    return float_of_bits(static_cast<uint32_t>(bits) << 16);
}

PYALIGN_BOTH float widen_f16(uint16_t bits) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | rest << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(rest), -24);
    return float_of_bits(sign | (exponent + 112) << 23 | rest << 13);
#endif
}

PYALIGN_BOTH float widen(Narrow kind, uint16_t bits) {
    return kind == Narrow::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

// To the nearest, ties to even.
PYALIGN_BOTH uint16_t narrow_bf16(float value) {
#if defined(__CUDA_ARCH__)
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
    const uint32_t bits = bits_of_float(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

PYALIGN_BOTH uint16_t narrow_f16(float value) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(value));
#else
    const uint16_t sign = static_cast<uint16_t>(bits_of_float(value) >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (value != value) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
    const uint32_t bits = bits_of_float(size) - (112u << 23);
    return sign | static_cast<uint16_t>((bits + 0xfff + (bits >> 13 & 1)) >> 13);
#endif
}

PYALIGN_BOTH uint16_t narrowed(Narrow kind, float value) {
    return kind == Narrow::bf16 ? narrow_bf16(value) : narrow_f16(value);
}

}  // namespace pyalign
