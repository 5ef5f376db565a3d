// The line d * q + m, q from 0 to 15, that holds a group of weights best.
#pragma once
#include "decode.h"

namespace ga {

// For `n` values, 1 to 32; d and m are float16 numbers, quants past n are 0. A value that is not finite makes m NaN,
// so that damage is seen in every result.
Line best_line(const float* x, int n);

}  // namespace ga
