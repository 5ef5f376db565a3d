// The scale d, of d * q with q from -127 to 127, that holds a group of weights best.
#pragma once
#include <stdint.h>

namespace ga {

struct Scaled {
    float d;  // a float16 number
    int8_t q[32];
};

// For `n` values, 0 to 32; quants past n are 0. A value that is not finite makes d NaN, so that damage is seen in every
// result.
Scaled best_scale(const float* x, int n);

}  // namespace ga
