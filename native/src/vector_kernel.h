// Bodies of the row-wise kernels, written once over a 16-lane vector type V (Portable, Avx2 or Avx512).
#pragma once
#include <math.h>

#include "vector_kernels.h"

namespace ga {

// Sums squares in four interleaved vectors: the order is a function of n alone.
template <class V>
void norm_row(const float* x, const float* residual, const float* gain, float* sum, float* y, int64_t n, float eps) {
    using F = typename V::F;
    F squares[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    int64_t i = 0;
    for (int turn = 0; i < n; i += 16, turn = (turn + 1) & 3) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        F s = V::load_n(x + i, left);
        if (residual) {
            s = V::add(V::load_n(residual + i, left), s);
            V::store_n(sum + i, s, left);
        }
        squares[turn] = V::fma(s, s, squares[turn]);
    }
    const float total = V::reduce_add(V::add(V::add(squares[0], squares[1]), V::add(squares[2], squares[3])));
    const F scale = V::set1(1.0f / sqrtf(total / static_cast<float>(n) + eps));
    const float* in = residual ? sum : x;
    for (i = 0; i < n; i += 16) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        V::store_n(y + i, V::mul(V::mul(V::load_n(in + i, left), scale), V::load_n(gain + i, left)), left);
    }
}

template <class V>
void rope_row(const float* x, float* y, int64_t heads, int64_t width, int64_t dim, const float* table,
              bool interleaved) {
    using F = typename V::F;
    const float* cosine = table;
    const float* sine = table + dim;  // minus for the first of a pair, plus for the second
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; ++h, x += width, y += width) {
        if (interleaved) {
            for (int64_t i = 0; i < dim; i += 16) {
                const int left = dim - i < 16 ? static_cast<int>(dim - i) : 16;
                const F a = V::load_n(x + i, left);
                const F turned = V::mul(V::swap_pairs(a), V::load_n(sine + i, left));
                V::store_n(y + i, V::fma(a, V::load_n(cosine + i, left), turned), left);
            }
        } else {
            for (int64_t i = 0; i < half; i += 16) {
                const int left = half - i < 16 ? static_cast<int>(half - i) : 16;
                const F a = V::load_n(x + i, left), b = V::load_n(x + half + i, left);
                const F c = V::load_n(cosine + i, left), s = V::load_n(sine + half + i, left);
                const F minus = V::load_n(sine + i, left);
                V::store_n(y + i, V::fma(a, c, V::mul(b, minus)), left);
                V::store_n(y + half + i, V::fma(b, c, V::mul(a, s)), left);
            }
        }
        if (y != x)
            for (int64_t i = dim; i < width; ++i) y[i] = x[i];
    }
}

template <class V>
void swiglu_row(const float* gate, const float* up, float* y, int64_t n) {
    using F = typename V::F;
    const F one = V::set1(1.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        const F g = V::load_n(gate + i, left);
        const F silu = V::div(g, V::add(one, V::exp(V::sub(V::zero(), g))));
        V::store_n(y + i, V::mul(silu, V::load_n(up + i, left)), left);
    }
}

template <class V>
void add_row(const float* x, const float* y, float* z, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const int left = n - i < 16 ? static_cast<int>(n - i) : 16;
        V::store_n(z + i, V::add(V::load_n(x + i, left), V::load_n(y + i, left)), left);
    }
}

template <class V>
constexpr VectorKernels vector_table() {
    return {V::kName, norm_row<V>, rope_row<V>, swiglu_row<V>, add_row<V>};
}

}  // namespace ga
