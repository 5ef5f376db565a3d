// Register tiles of attention over 8-bit codes: sums of products of 16-bit and 8-bit integers, which are exact.
#pragma once
#include "attention_kernels.h"

namespace ga {

// A panel of codes starts with the steps of its 16 keys, float32 on a cache line of their own.
constexpr int kStepBytes = kPanel * sizeof(float);

static inline const float* steps_of(const int8_t* codes) { return reinterpret_cast<const float*>(codes - kStepBytes); }

static inline int32_t pair_at(const int16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, sizeof both);
    return both;
}

// The largest code of a query: so large that a sum of `dim` products with 127 still fits into 32 bits.
static inline float query_range(int dim) {
    const int most = 0x7FFFFFFF / 127 / (dim > 0 ? dim : 1);
    return static_cast<float>(most < 32767 ? most : 32767);
}

// codes = x / step, rounded, for a row of `count` numbers, zeros up to the next multiple of 16; returns the step. `range`
// is the code of the largest magnitude.
template <class V>
float to_codes(const float* x, int count, float range, int16_t* codes) {
    using F = typename V::F;
    F largest = V::zero(), all = V::zero();
    for (int d = 0; d < count; d += 16) {
        const F some = V::load_n(x + d, count - d < 16 ? count - d : 16);
        largest = V::max(largest, V::max(some, V::sub(V::zero(), some)));
        all = V::add(all, some);
    }
    const float most = V::reduce_max(largest), sum = V::reduce_add(all);
    const F factor = V::set1(most > 1e-34f ? range / most : 0.0f);  // finite
    for (int d = 0; d < count; d += 16)
        V::store_codes(codes + d, V::mul(V::load_n(x + d, count - d < 16 ? count - d : 16), factor));
    return most / range + (sum - sum);  // not a number if one of x is not finite
}

template <class V, int R, int P>
inline void score_code_tile(const int16_t* q, const float* q_step, int dim, int width, const int8_t* const* panels,
                            const int8_t* const* ahead, float* scores) {
    typename V::I sum[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = V::zero_int();
    for (int d = 0; d < dim; d += 2) {
        typename V::Codes keys[P];
        for (int p = 0; p < P; ++p) {
            keys[p] = V::load_codes(panels[p] + d * kPanel);
            V::prefetch(ahead[p] + d * kPanel);
        }
        for (int r = 0; r < R; ++r) {
            const int32_t two = pair_at(q + r * width + d);
            for (int p = 0; p < P; ++p) sum[r][p] = V::dot(sum[r][p], two, keys[p]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            V::store(scores + r * kChunk + p * kPanel,
                     V::mul(V::mul(V::to_float(sum[r][p]), V::set1(q_step[r])), V::load(steps_of(panels[p]))));
}

template <class V, int R>
void score_codes(const int16_t* q, const float* q_step, int rows, int dim, int width, const int8_t* const* panels,
                 const int8_t* const* ahead, float* scores) {
    int r = 0;
    for (; r + R <= rows; r += R)
        score_code_tile<V, R, 1>(q + r * width, q_step + r, dim, width, panels, ahead, scores + r * kChunk);
    if constexpr (R > 1) {
        if (r < rows)
            score_codes<V, R - 1>(q + r * width, q_step + r, rows - r, dim, width, panels, ahead, scores + r * kChunk);
    }
}

// Softmax weights times the steps of their values, as codes. Returns the step of these.
template <class V>
float weight_codes(const float* weights, int count, const int8_t* const* values, int16_t* codes) {
    using F = typename V::F;
    alignas(64) float scaled[kChunk];
    for (int p = 0; p < kChunkPanels; ++p) {
        const int n = count - p * kPanel;
        const F some = n > 0 ? V::mul(V::load(weights + p * kPanel), V::load(steps_of(values[p]))) : V::zero();
        V::store(scaled + p * kPanel, V::first_n(some, n, 0.0f));
    }
    return to_codes<V>(scaled, kChunk, 32767.0f, codes);
}

// mix[r] = mix[r] * fade[r] + step[r] * sum over the keys of `panels` of code * value. A weight of zero adds nothing.
template <class V, int R>
inline void mix_code_tile(const int16_t* weights, const float* step, const float* fade, const int8_t* const* panels,
                          const int8_t* const* ahead, int count, int dim, float* mix) {
    typename V::I sum[R];
    for (int r = 0; r < R; ++r) sum[r] = V::zero_int();
    for (int p = 0; p < count; ++p)
        for (int k = 0; k < kPanel; k += 2) {
            const typename V::Codes values = V::load_codes(panels[p] + k * dim);
            V::prefetch(ahead[p] + k * kPanel);
            for (int r = 0; r < R; ++r)
                sum[r] = V::dot(sum[r], pair_at(weights + r * kChunk + p * kPanel + k), values);
        }
    for (int r = 0; r < R; ++r) {
        const typename V::F old = V::mul(V::load(mix + r * dim), V::set1(fade[r]));
        V::store(mix + r * dim, V::fma(V::to_float(sum[r]), V::set1(step[r]), old));
    }
}

template <class V, int R>
void mix_codes(const int16_t* weights, const float* step, const float* fade, int rows, const int8_t* const* panels,
               const int8_t* const* ahead, int count, int dim, float* mix) {
    int r = 0;
    for (; r + R <= rows; r += R)
        mix_code_tile<V, R>(weights + r * kChunk, step + r, fade + r, panels, ahead, count, dim, mix + r * dim);
    if constexpr (R > 1) {
        if (r < rows)
            mix_codes<V, R - 1>(weights + r * kChunk, step + r, fade + r, rows - r, panels, ahead, count, dim,
                                mix + r * dim);
    }
}

}  // namespace ga
