// Register tiles of attention over a 16-lane vector type V: scores of rows against panels, and weighted values.
#pragma once
#include "attention_kernels.h"

namespace ga {

// What is read next: while one panel is computed with, one line of the panel at `ahead` is fetched per line in use. A
// panel is a page of memory or two, at whose end the processor's own prefetching stops.
template <class V, class T>
inline void fetch(const T* ahead) {
    V::prefetch(ahead);
    if constexpr (sizeof(T) == 4) V::prefetch(ahead + kPanel);
}

// A row's value never depends on how many rows or panels share its tile: every sum runs in its own register.
template <class V, int R, int P, class T>
inline void score_tile(const float* q, int dim, const T* const* panels, const T* const* ahead, float scale,
                       float* scores) {
    using F = typename V::F;
    F sum[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = V::zero();
    for (int d = 0; d < dim; d += 2) {
        F even[P], odd[P];
        for (int p = 0; p < P; ++p) {
            V::load_pairs(panels[p] + d * kPanel, even[p], odd[p]);
            fetch<V>(ahead[p] + d * kPanel);
        }
        for (int r = 0; r < R; ++r) {
            const F x = V::set1(q[r * dim + d]);
            for (int p = 0; p < P; ++p) sum[r][p] = V::fma(x, even[p], sum[r][p]);
        }
        for (int r = 0; r < R; ++r) {
            const F x = V::set1(q[r * dim + d + 1]);
            for (int p = 0; p < P; ++p) sum[r][p] = V::fma(x, odd[p], sum[r][p]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            V::store(scores + r * kChunk + p * kPanel, V::mul(sum[r][p], V::set1(scale)));
}

template <class V, int R, int P, class T>
void score_rows(const float* q, int rows, int dim, const T* const* panels, const T* const* ahead, float scale,
                float* scores) {
    int r = 0;
    for (; r + R <= rows; r += R) score_tile<V, R, P, T>(q + r * dim, dim, panels, ahead, scale, scores + r * kChunk);
    if constexpr (R > 1) {
        if (r < rows)
            score_rows<V, R - 1, P, T>(q + r * dim, rows - r, dim, panels, ahead, scale, scores + r * kChunk);
    }
}

// All rows against `count` panels. Few rows take more panels at once, to keep enough sums in flight.
template <class V, class T>
void scores_of(const float* q, int rows, int dim, const T* const* panels, const T* const* ahead, int count,
               float scale, float* scores) {
    int p = 0;
    if (rows <= V::kFewRows)
        for (; p + V::kFewPanels <= count; p += V::kFewPanels)
            score_rows<V, V::kFewRows, V::kFewPanels, T>(q, rows, dim, panels + p, ahead + p, scale,
                                                         scores + p * kPanel);
    for (; p + V::kWidePanels <= count; p += V::kWidePanels)
        score_rows<V, V::kDotRows, V::kWidePanels, T>(q, rows, dim, panels + p, ahead + p, scale,
                                                      scores + p * kPanel);
    if constexpr (V::kWidePanels > 1)
        for (; p < count; ++p)
            score_rows<V, V::kDotRows, 1, T>(q, rows, dim, panels + p, ahead + p, scale,
                                             scores + p * kPanel);
}

template <class V, int R, int N>
inline void mix_panel(const float* weights, const float* values, const float* ahead, int dim, int count,
                      typename V::F (&sum)[R][N]) {
    using F = typename V::F;
    for (int k = 0; k < count; ++k) {
        for (int n = 0; n < N; ++n) V::prefetch(ahead + (n * kPanel + k) * 16);
        F v[N];
        for (int n = 0; n < N; ++n) v[n] = V::load(values + k * dim + n * 16);
        for (int r = 0; r < R; ++r) {
            const F w = V::set1(weights[r * kChunk + k]);
            for (int n = 0; n < N; ++n) sum[r][n] = V::fma(w, v[n], sum[r][n]);
        }
    }
}

template <class V, int R, int N>
inline void mix_panel(const float* weights, const uint16_t* values, const uint16_t* ahead, int dim, int count,
                      typename V::F (&sum)[R][N]) {
    using F = typename V::F;
    for (int k = 0; k < count; k += 2) {
        for (int n = 0; n < N; ++n) V::prefetch(ahead + (n * kPanel + k) * 16);
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
inline void mix_tile(const float* weights, const float* fade, const T* const* panels, const T* const* ahead, int dim,
                     int count, float* mix) {
    using F = typename V::F;
    F sum[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sum[r][n] = V::mul(V::load(mix + r * dim + n * 16), V::set1(fade[r]));
    for (int p = 0; p * kPanel < count; ++p) {
        const int keys = count - p * kPanel < kPanel ? count - p * kPanel : kPanel;
        mix_panel<V, R, N>(weights + p * kPanel, panels[p], ahead[p], dim, keys, sum);
    }
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) V::store(mix + r * dim + n * 16, sum[r][n]);
}

template <class V, int R, int N, class T>
void mix_rows(const float* weights, const float* fade, int rows, const T* const* panels, const T* const* ahead,
              int dim, int count, float* mix) {
    int r = 0;
    for (; r + R <= rows; r += R)
        mix_tile<V, R, N, T>(weights + r * kChunk, fade + r, panels, ahead, dim, count, mix + r * dim);
    if constexpr (R > 1) {
        if (r < rows)
            mix_rows<V, R - 1, N, T>(weights + r * kChunk, fade + r, rows - r, panels, ahead, dim, count,
                                     mix + r * dim);
    }
}

// All vectors of the value, N at a time; `dim` is a multiple of 16. Of the panels at `ahead` (keys of as many values per
// key) so much is fetched as of those at `panels` is read.
template <class V, int N, class T>
void mix_values(const float* weights, const float* fade, int rows, const T* const* panels, const T* const* ahead,
                int dim, int from, int count, float* mix) {
    constexpr int step = sizeof(T) == 2 ? 2 : 1;  // bf16 values come in pairs of keys
    const T* shifted[kChunkPanels];
    const T* next[kChunkPanels];
    for (; from + 16 * N <= dim; from += 16 * N) {
        for (int p = 0; p * kPanel < count; ++p) {
            shifted[p] = panels[p] + from * step;
            next[p] = ahead[p] + from * kPanel;
        }
        mix_rows<V, V::kMixRows, N, T>(weights, fade, rows, shifted, next, dim, count, mix + from);
    }
    if constexpr (N > 1) {
        if (from < dim) mix_values<V, N - 1, T>(weights, fade, rows, panels, ahead, dim, from, count, mix);
    }
}

}  // namespace ga
