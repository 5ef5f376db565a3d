// The largest magnitude of a row, for quantisation; a NaN counts as larger than everything.
#pragma once
#include "half.h"

namespace ga {

constexpr float kTiny = 1e-30f;            // rows below it are zero to a quantiser: 127 / x would overflow
constexpr float kLargest = 3.402823466e38f;

// Magnitudes sort like their bits, and a NaN's bits lie above those of infinity.
static inline float largest_magnitude(const float* x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t magnitude = float_to_bits(x[i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return bits_to_float(largest);
}

}  // namespace ga
