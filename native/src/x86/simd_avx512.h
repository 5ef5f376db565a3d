// Sixteen float lanes as one AVX-512 register: the twin of simd_portable.h, with the same members.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics warn about the register that they leave undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stdint.h>

namespace ga {

// Every member works lane by lane, so a lane's value never depends on its place or on its neighbours.
struct Avx512 {
    static constexpr const char* kName = "avx512";
    static constexpr int kDotRows = 6;  // 6 rows x 2 panels are 12 sums, the keys take 4 of 32 registers
    static constexpr int kMixRows = 6;
    static constexpr int kWidePanels = 2;
    static constexpr int kFewRows = 3;
    static constexpr int kFewPanels = 4;
    static constexpr int kMixVectors = 4;
    static constexpr int kCodeRows = 8;

    using F = __m512;

    static inline __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

    static inline F set1(float a) { return _mm512_set1_ps(a); }
    static inline F zero() { return _mm512_setzero_ps(); }
    static inline F load(const float* p) { return _mm512_loadu_ps(p); }
    static inline F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static inline void store_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, mask(n), a); }

    static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
    static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
    static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
    static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static inline F swap_pairs(F a) { return _mm512_permute_ps(a, 0xB1); }
    // Lanes from n on become `other`.
    static inline F first_n(F a, int n, float other) {
        const __mmask16 keep = n >= 16 ? 0xFFFF : n <= 0 ? 0 : mask(n);
        return _mm512_mask_mov_ps(_mm512_set1_ps(other), keep, a);
    }

    static inline float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
    static inline float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

    static inline float first(F a) { return _mm512_cvtss_f32(a); }
    static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

    // Sixteen pairs: element 0 of each pair, and element 1.
    static inline void load_pairs(const uint16_t* p, F& even, F& odd) {
        const __m512i both = _mm512_loadu_si512(p);
        even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
    }
    static inline void load_pairs(const float* p, F& even, F& odd) {
        even = load(p);
        odd = load(p + 16);
    }

    // Sixteen pairs of 8-bit codes as 16-bit integers, and sixteen sums of 32 bits.
    using Codes = __m512i;
    using I = __m512i;
    static inline I zero_int() { return _mm512_setzero_si512(); }
    static inline Codes load_codes(const int8_t* p) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    // sum + a pair of 16-bit integers times each pair of codes; the caller keeps sums within 32 bits.
    static inline I dot(I sum, int32_t pair, Codes c) { return _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(pair), c); }
    static inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    // Rounded to even; |a| <= 32767.
    static inline void store_codes(int16_t* p, F a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
    }

    // e^x within 2 units in the last place; 0 below -104, inf above 89.
    static inline F exp(F x) {
        // The constant comes first: with a NaN, max and min return their second operand.
        x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
        x = _mm512_min_ps(_mm512_set1_ps(90.0f), x);
        const F n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        F r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
        r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
        F q = _mm512_set1_ps(0.0013814583653584123f);
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.008368724025785923f));
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.04166838899254799f));
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.1666652113199234f));
        q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0.4999999403953552f));
        const F p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(q, r), r, r), _mm512_set1_ps(1.0f));
        return _mm512_scalef_ps(p, n);
    }
};

}  // namespace ga
