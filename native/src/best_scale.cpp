// The search for an int8 group's scale: eight scales side by side, each improved to that of least squares for its quants.
//
// A scale that gives the largest magnitude quant 127 holds this one value exactly, and all others as they happen to
// fall. With quant 126, 125, ... 120 they fall otherwise, on a grid that is hardly coarser, and among eight draws one is
// good: a fifth less squared error. Largest magnitudes between two quants were tried as well; none was better.
// Quants give the best scale in closed form, with its squared error. What is chosen in the end is compared with the
// plain scale, both rounded as they will be stored, so that it is never worse.
#include "best_scale.h"

#include <math.h>
#include <string.h>

#include "group_sums.h"
#include "half.h"
#include "magnitude.h"
#include "round_even.h"

namespace ga {
namespace {

constexpr float kTops[kAttempts] = {127.0f, 126.0f, 125.0f, 124.0f, 123.0f, 122.0f, 121.0f, 120.0f};

inline float to_quant(float v) {
    const float q = round_even(v);
    const float low = q > -127.0f ? q : -127.0f;
    return low < 127.0f ? low : 127.0f;
}

// The quants of a scale, after it is rounded as it will be stored -> squared error. `x`: 32 values, zeros past the end.
float quantise_on(const float* x, Scaled& group) {
    group.d = half_to_float(float_to_half(group.d));
    const float d = group.d, by = d != 0.0f ? d : 1.0f, used = d != 0.0f ? 1.0f : 0.0f;
    float squares[kValues];
    for (int i = 0; i < kValues; ++i) {
        const float quant = to_quant(x[i] / by) * used, off = x[i] - d * quant;
        group.q[i] = static_cast<int8_t>(static_cast<int32_t>(quant));
        squares[i] = off * off;
    }
    return sum_of(squares);
}

// The best scale of all attempts; `unit` gives the largest magnitude quant 127.
float search(const float* x, float unit) {
    const float inverse = 1.0f / unit;
    float qq[kAttempts], qt[kAttempts];
    for (int c = 0; c < kAttempts; c += 4) {
        Four top, square = {}, along = {};
        memcpy(&top, kTops + c, sizeof top);
        const Four scale = top / 127.0f;
        for (int i = 0; i < kValues; ++i) {
            const float t = x[i] * inverse;
            const Four q = (t * scale + kNoFraction) - kNoFraction;  // round_even
            square += q * q;
            along += q * t;
        }
        memcpy(qq + c, &square, sizeof square);
        memcpy(qt + c, &along, sizeof along);
    }
    float best = 0.0f, d = 0.0f;
    for (int c = 0; c < kAttempts; ++c) {
        const float gain = qt[c] * qt[c] / qq[c];  // by so much the squared error falls below that of zeros
        if (!(gain > best)) continue;
        best = gain;
        d = qt[c] / qq[c];
    }
    return d * unit;
}

}  // namespace

Scaled best_scale(const float* values, int n) {
    Scaled plain{NAN, {}}, searched{0.0f, {}};
    const float largest = largest_magnitude(values, n), unit = largest / 127.0f;
    if (!(largest <= kLargest)) return plain;
    float x[kValues] = {};
    memcpy(x, values, static_cast<size_t>(n) * sizeof(float));
    plain.d = unit;
    const float error = quantise_on(x, plain);
    if (!(unit > kTiny && unit <= kHalfLargest)) return plain;
    searched.d = search(x, unit);
    return quantise_on(x, searched) < error ? searched : plain;
}

}  // namespace ga
