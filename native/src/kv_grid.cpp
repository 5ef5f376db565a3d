// A calibrated 8-bit grid of a KV cache: what is written is rounded to it, scales go to queries and to results.
//
//   keys, values   c - offset    with c = round(x / scale + offset), held to -128 .. 127; bfloat16 has such numbers exactly
//   queries        q * key scale
//   results        mix * value scale
//
// Each is a pass over rows with one constant per column, bound by reading and writing them; rows are independent.
#include "gallium/attention.h"
#include "round_even.h"
#include "rows.h"

namespace {

template <class F>
void over_columns(const ga_columns_args& a, F&& f) {
    ga::for_rows(a.rows, a.width * 3, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const float* x = a.x + r * a.x_stride;
            float* y = a.y + r * a.width;
            for (int64_t i = 0; i < a.width; ++i) y[i] = f(x[i], i);
        }
    });
}

}  // namespace

void ga_kv_codes(const ga_columns_args* args) {
    const ga_columns_args a = *args;
    over_columns(a, [&](float x, int64_t i) {
        const float v = x * a.scale[i] + a.offset[i];
        const float low = v < -128.0f ? -128.0f : v;  // before rounding, which is the same; NaN stays
        return ga::round_even(low > 127.0f ? 127.0f : low) - a.offset[i];
    });
}

void ga_scale_columns(const ga_columns_args* args) {
    const ga_columns_args a = *args;
    over_columns(a, [&](float x, int64_t i) { return x * a.scale[i]; });
}
