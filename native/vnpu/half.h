// 16-bit floats as float.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ga::vnpu {

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float bfloat16_to_float(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

inline float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1Fu, fraction = bits & 0x3FFu;
    if (exponent == 0x1F) return float_of_bits(sign | 0x7F800000u | (fraction << 13));
    if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
    const float tiny = static_cast<float>(fraction) * (1.0f / 16777216.0f);  // fraction * 2^-24
    return sign != 0 ? -tiny : tiny;
}

}  // namespace ga::vnpu
