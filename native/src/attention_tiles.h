// Register tiles of attention over a 16-lane vector type V: scores of rows against panels, and weighted values.
#pragma once
#include "attention_kernels.h"

namespace ga {

// A row's value never depends on how many rows or panels share its tile: every sum runs in its own register.
template <class V, int R, int P, class T>
inline void score_tile(const float* q, int dim, const T* const* panels, float scale, float* scores) {
    using F = typename V::F;
    F even[R][P], odd[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) even[r][p] = odd[r][p] = V::zero();
    for (int d = 0; d < dim; d += 2) {
        F k0[P], k1[P];
        for (int p = 0; p < P; ++p) V::load_pairs(panels[p] + d * kPanel, k0[p], k1[p]);
        for (int r = 0; r < R; ++r) {
            const F q0 = V::set1(q[r * dim + d]), q1 = V::set1(q[r * dim + d + 1]);
            for (int p = 0; p < P; ++p) {
                even[r][p] = V::fma(q0, k0[p], even[r][p]);
                odd[r][p] = V::fma(q1, k1[p], odd[r][p]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            V::store(scores + r * kChunk + p * kPanel, V::mul(V::add(even[r][p], odd[r][p]), V::set1(scale)));
}

template <class V, int R, int P, class T>
void score_rows(const float* q, int rows, int dim, const T* const* panels, float scale, float* scores) {
    int r = 0;
    for (; r + R <= rows; r += R) score_tile<V, R, P, T>(q + r * dim, dim, panels, scale, scores + r * kChunk);
    if constexpr (R > 1) {
        if (r < rows) score_rows<V, R - 1, P, T>(q + r * dim, rows - r, dim, panels, scale, scores + r * kChunk);
    }
}

// All rows against `count` panels. Few rows take more panels at once, to keep enough sums in flight.
template <class V, class T>
void scores_of(const float* q, int rows, int dim, const T* const* panels, int count, float scale, float* scores) {
    constexpr int wide = V::kWidePanels;
    int p = 0;
    if constexpr (wide > 1) {
        if (rows <= 3 && count == kChunkPanels) {
            score_rows<V, 3, kChunkPanels, T>(q, rows, dim, panels, scale, scores);
            return;
        }
        for (; p + wide <= count; p += wide)
            score_rows<V, V::kDotRows, wide, T>(q, rows, dim, panels + p, scale, scores + p * kPanel);
    }
    for (; p < count; ++p)
        score_rows<V, V::kDotRows, 1, T>(q, rows, dim, panels + p, scale, scores + p * kPanel);
}

template <class V, int R, int N>
inline void mix_panel(const float* weights, const float* values, int dim, int count, typename V::F (&sum)[R][N]) {
    using F = typename V::F;
    for (int k = 0; k < count; ++k) {
        F v[N];
        for (int n = 0; n < N; ++n) v[n] = V::load(values + k * dim + n * 16);
        for (int r = 0; r < R; ++r) {
            const F w = V::set1(weights[r * kChunk + k]);
            for (int n = 0; n < N; ++n) sum[r][n] = V::fma(w, v[n], sum[r][n]);
        }
    }
}

template <class V, int R, int N>
inline void mix_panel(const float* weights, const uint16_t* values, int dim, int count, typename V::F (&sum)[R][N]) {
    using F = typename V::F;
    for (int k = 0; k < count; k += 2) {
        F v0[N], v1[N];
        for (int n = 0; n < N; ++n) V::load_pairs(values + k * dim + n * 32, v0[n], v1[n]);
        for (int r = 0; r < R; ++r) {
            const F w = V::set1(weights[r * kChunk + k]);
            for (int n = 0; n < N; ++n) sum[r][n] = V::fma(w, v0[n], sum[r][n]);
        }
        if (k + 1 == count) break;  // a key past the context must not enter, not even with weight 0
        for (int r = 0; r < R; ++r) {
            const F w = V::set1(weights[r * kChunk + k + 1]);
            for (int n = 0; n < N; ++n) sum[r][n] = V::fma(w, v1[n], sum[r][n]);
        }
    }
}

// mix[r] = mix[r] * fade[r] + sum over `count` keys of weight * value, for R rows and N vectors of the value.
template <class V, int R, int N, class T>
inline void mix_tile(const float* weights, const float* fade, const T* const* panels, int dim, int count, float* mix) {
    using F = typename V::F;
    F sum[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sum[r][n] = V::mul(V::load(mix + r * dim + n * 16), V::set1(fade[r]));
    for (int p = 0; p * kPanel < count; ++p) {
        const int keys = count - p * kPanel < kPanel ? count - p * kPanel : kPanel;
        mix_panel<V, R, N>(weights + p * kPanel, panels[p], dim, keys, sum);
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) V::store(mix + r * dim + n * 16, sum[r][n]);
}

template <class V, int R, int N, class T>
void mix_rows(const float* weights, const float* fade, int rows, const T* const* panels, int dim, int count,
              float* mix) {
    int r = 0;
    for (; r + R <= rows; r += R)
        mix_tile<V, R, N, T>(weights + r * kChunk, fade + r, panels, dim, count, mix + r * dim);
    if constexpr (R > 1) {
        if (r < rows)
            mix_rows<V, R - 1, N, T>(weights + r * kChunk, fade + r, rows - r, panels, dim, count, mix + r * dim);
    }
}

// All vectors of the value, N at a time; `dim` is a multiple of 16.
template <class V, int N, class T>
void mix_values(const float* weights, const float* fade, int rows, const T* const* panels, int dim, int from,
                int count, float* mix) {
    constexpr int step = sizeof(T) == 2 ? 2 : 1;  // bf16 values come in pairs of keys
    const T* shifted[kChunkPanels];
    for (; from + 16 * N <= dim; from += 16 * N) {
        for (int p = 0; p * kPanel < count; ++p) shifted[p] = panels[p] + from * step;
        mix_rows<V, V::kMixRows, N, T>(weights, fade, rows, shifted, dim, count, mix + from);
    }
    if constexpr (N > 1) {
        if (from < dim) mix_values<V, N - 1, T>(weights, fade, rows, panels, dim, from, count, mix);
    }
}

}  // namespace ga
