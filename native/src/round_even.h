// Rounding to the nearest integer, half to even, without a call. (rintf is one on plain x86.)
#pragma once

namespace ga {

constexpr float kNoFraction = 12582912.0f;  // 1.5 * 2^23: a sum with it has no bits for a fraction

// For |x| < 2^22; NaN stays NaN.
static inline float round_even(float x) { return (x + kNoFraction) - kNoFraction; }

}  // namespace ga
