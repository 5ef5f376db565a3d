// Conversions between float32 and the 16-bit formats, without any instruction set's help.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ga {

static inline float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN stays NaN.
static inline uint16_t float_to_bf16(float x) {
    const uint32_t u = float_to_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
    return static_cast<uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

static inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3FFu;
    if (exponent == 31) return bits_to_float(sign | 0x7F800000u | (fraction << 13));
    if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (fraction << 13));
    const float small = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormal numbers
    return sign ? -small : small;
}

// Round to nearest even; beyond the range the largest finite number.
static inline uint16_t float_to_half(float x) {
    const uint32_t u = float_to_bits(x), sign = (u >> 16) & 0x8000u;
    const float a = bits_to_float(u & 0x7FFFFFFFu);
    if (!(a <= 65504.0f)) return static_cast<uint16_t>(a > 65504.0f ? sign | 0x7BFFu : sign | 0x7E00u);
    if (a < 0x1p-14f) {  // adding 1.5 * 2^-1 aligns the fraction's last bit to 2^-24 and rounds
        const uint32_t rounded = float_to_bits(a + 0.75f) - float_to_bits(0.75f);
        return static_cast<uint16_t>(sign | rounded);
    }
    const uint32_t v = u & 0x7FFFFFFFu;
    return static_cast<uint16_t>(sign | ((v + 0xFFFu + ((v >> 13) & 1u) - (112u << 23)) >> 13));
}

}  // namespace ga
