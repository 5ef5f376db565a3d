// What the searches for a group's line and scale share: 32 values, eight attempts side by side, and sums in one order.
//
// Arithmetic is in float32 in one order, whatever the machine; src/gallium/checkpoints/fitting.py does the same in NumPy.
// Attempts are lanes of a vector and values are taken in turn; sums over the values alone have eight lanes, too.
#pragma once

namespace ga {

constexpr int kValues = 32, kAttempts = 8;
constexpr float kHalfLargest = 65504.0f;

// Four attempts; a type of GCC's and Clang's for vectors of every machine, since compilers make none of loops that short.
typedef float Four __attribute__((vector_size(16)));

// Sums of eight lanes, added in pairs.
inline float add_lanes(const float* s) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

inline float sum_of(const float* x) {
    float lanes[8];
    for (int j = 0; j < 8; ++j) lanes[j] = ((x[j] + x[8 + j]) + x[16 + j]) + x[24 + j];
    return add_lanes(lanes);
}

}  // namespace ga
