// The search for an int4 group's line: eight ranges side by side, each with the line of least squares for its quants.
//
// A range whose ends are the least and the greatest value is seldom the best: it holds these two exactly, and all others
// as they happen to fall. So ranges are tried whose ends lie a part of a step further in or out. A range gives quants,
// and quants give the best line through the values in closed form, with its squared error. What is chosen in the end is
// compared with the plain range, both rounded as they will be stored, so that it is never worse.
#include "best_line.h"

#include <math.h>

#include "group_sums.h"
#include "half.h"
#include "magnitude.h"
#include "round_even.h"

namespace ga {
namespace {

// How far the ends are moved inwards, in fifteenths of the values' span; chosen for the least squared error of random
// and real weights. The same pairs stand in fitting.py.
constexpr float kLowEnd[kAttempts] = {0.25f, -0.15f, -0.15f, 0.5f, -0.9f, -0.05f, 0.35f, -0.05f};
constexpr float kHighEnd[kAttempts] = {0.25f, -0.15f, 0.5f, -0.15f, -0.05f, -0.9f, -0.05f, 0.35f};

struct Group {
    alignas(32) float x[kValues];     // zeros past n
    alignas(32) float real[kValues];  // 1 where there is a value
    int n;
};

inline float to_quant(float v) {
    const float q = round_even(v);
    const float low = q > 0.0f ? q : 0.0f;  // a NaN, too
    return low < 15.0f ? low : 15.0f;
}

// The quants of a line, after its d and m are rounded as they will be stored -> squared error.
float quantise_on(const Group& group, Line& line) {
    line.d = half_to_float(float_to_half(line.d));
    line.m = half_to_float(float_to_half(line.m));
    const float d = line.d, m = line.m, by = d != 0.0f ? d : 1.0f, used = d != 0.0f ? 1.0f : 0.0f;
    float quants[kValues], squares[kValues];
    for (int i = 0; i < kValues; ++i) {
        quants[i] = to_quant((group.x[i] - m) / by) * (group.real[i] * used);
        const float off = (group.x[i] - (d * quants[i] + m)) * group.real[i];
        squares[i] = off * off;
    }
    for (int i = 0; i < kValues; ++i) line.q[i] = static_cast<uint8_t>(static_cast<int32_t>(quants[i]));
    return sum_of(squares);
}

// The best line of all ranges; `unit` is the fifteenth of the values' span. False: no range has a line, since the values are
// all but equal or further apart than float16 can say.
bool search(const Group& group, float low, float unit, Line& found) {
    if (!(unit > kTiny && unit <= kHalfLargest)) return false;
    const float inverse = 1.0f / unit, count = static_cast<float>(group.n);
    float t[kValues], q[kAttempts], qq[kAttempts], qt[kAttempts];
    for (int i = 0; i < kValues; ++i) t[i] = (group.x[i] - low) * inverse * group.real[i];
    for (int c = 0; c < kAttempts; c += 4) {
        Four low_end, high_end, sum = {}, square = {}, along = {};
        memcpy(&low_end, kLowEnd + c, sizeof low_end);
        memcpy(&high_end, kHighEnd + c, sizeof high_end);
        const Four scale = 15.0f / (15.0f - low_end - high_end), zero = {}, top = zero + 15.0f;
        for (int i = 0; i < group.n; ++i) {
            Four v = ((t[i] - low_end) * scale + kNoFraction) - kNoFraction;  // round_even
            v = v > zero ? v : zero;
            v = v < top ? v : top;
            sum += v;
            square += v * v;
            along += v * t[i];
        }
        memcpy(q + c, &sum, sizeof sum);
        memcpy(qq + c, &square, sizeof square);
        memcpy(qt + c, &along, sizeof along);
    }
    const float mean = sum_of(t) / count;
    float best = 0.0f;
    for (int c = 0; c < kAttempts; ++c) {
        const float along = qt[c] - q[c] * mean, spread = qq[c] - q[c] * q[c] / count;
        const float gain = along * along / spread;  // by so much the squared error falls below that of a constant
        if (!(spread > 0.0f && gain > best)) continue;
        best = gain;
        const float d = along / spread;
        found.d = d * unit;
        found.m = low + (mean - d * (q[c] / count)) * unit;
    }
    return best > 0.0f;
}

}  // namespace

Line best_line(const float* x, int n) {
    Group group{{}, {}, n};
    float low = x[0], high = x[0];
    for (int i = 0; i < n; ++i) {
        group.x[i] = x[i];
        group.real[i] = 1.0f;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    const float sum = sum_of(group.x), unit = (high - low) / 15.0f;
    Line plain, searched;
    plain.d = unit;
    plain.m = fabsf(sum) <= kLargest ? low : NAN;
    const float error = quantise_on(group, plain);
    if (!search(group, low, unit, searched)) return plain;
    return quantise_on(group, searched) < error ? searched : plain;
}

}  // namespace ga
