// Sixteen float lanes as two AVX2 registers: the twin of simd_portable.h, with the same members.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace ga {

// Every member works lane by lane, so a lane's value never depends on its place or on its neighbours.
struct Avx2 {
    static constexpr const char* kName = "avx2";
    // 5 rows x 1 panel are 10 sums of 8 lanes: enough to hide the 4 cycles of each of two FMAs per cycle. The 16th
    // register is the mask that unpacks bfloat16; with 6 rows sums are spilled, and prefill loses a quarter.
    static constexpr int kDotRows = 5;
    static constexpr int kMixRows = 5;
    static constexpr int kWidePanels = 1;
    static constexpr int kFewRows = 2;
    static constexpr int kFewPanels = 2;
    static constexpr int kMixVectors = 1;
    static constexpr int kCodeRows = 4;

    struct F {
        __m256 low, high;
    };

    // Eight lanes, the first n of them set; n below 0 counts as 0, above 8 as 8.
    static inline __m256i mask8(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }

    static inline F set1(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
    static inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static inline F load_n(const float* p, int n) {
        if (n == 16) return load(p);
        return {_mm256_maskload_ps(p, mask8(n)), _mm256_maskload_ps(p + 8, mask8(n - 8))};
    }
    static inline void store(float* p, F a) {
        _mm256_storeu_ps(p, a.low);
        _mm256_storeu_ps(p + 8, a.high);
    }
    static inline void store_n(float* p, F a, int n) {
        if (n == 16) return store(p, a);
        _mm256_maskstore_ps(p, mask8(n), a.low);
        _mm256_maskstore_ps(p + 8, mask8(n - 8), a.high);
    }

    static inline F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static inline F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    static inline F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static inline F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static inline F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static inline F fma(F a, F b, F c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static inline F swap_pairs(F a) { return {_mm256_permute_ps(a.low, 0xB1), _mm256_permute_ps(a.high, 0xB1)}; }
    // Lanes from n on become `other`.
    static inline F first_n(F a, int n, float other) {
        const __m256 rest = _mm256_set1_ps(other);
        return {_mm256_blendv_ps(rest, a.low, _mm256_castsi256_ps(mask8(n))),
                _mm256_blendv_ps(rest, a.high, _mm256_castsi256_ps(mask8(n - 8)))};
    }

    static inline float reduce_add(F a) {
        const __m256 eight = _mm256_add_ps(a.low, a.high);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static inline float reduce_max(F a) {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    static inline float first(F a) { return _mm256_cvtss_f32(a.low); }
    static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

    // Eight pairs of bfloat16, 32 bytes: element 0 of each pair, and element 1.
    static inline __m256 even8(const void* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)), 16));
    }
    static inline __m256 odd8(const void* p) {
        const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
        return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(static_cast<const __m256i*>(p)), high));
    }

    // Sixteen pairs: element 0 of each pair, and element 1.
    static inline void load_pairs(const uint16_t* p, F& even, F& odd) {
        even = {even8(p), even8(p + 16)};
        odd = {odd8(p), odd8(p + 16)};
    }
    static inline void load_pairs(const float* p, F& even, F& odd) {
        even = load(p);
        odd = load(p + 16);
    }

    // Sixteen pairs of 8-bit codes as 16-bit integers, and sixteen sums of 32 bits.
    struct Codes {
        __m256i low, high;
    };
    struct I {
        __m256i low, high;
    };
    static inline I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static inline Codes load_codes(const int8_t* p) {
        const auto* at = reinterpret_cast<const __m128i*>(p);
        return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
    }
    // sum + a pair of 16-bit integers times each pair of codes; the caller keeps sums within 32 bits.
    static inline I dot(I sum, int32_t pair, Codes c) {
        const __m256i two = _mm256_set1_epi32(pair);
        return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(two, c.low)),
                _mm256_add_epi32(sum.high, _mm256_madd_epi16(two, c.high))};
    }
    static inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
    // Rounded to even; |a| <= 32767.
    static inline void store_codes(int16_t* p, F a) {
        const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xD8));
    }

    // e^x within 2 units in the last place; 0 below -104, inf above 89.
    static inline F exp(F x) { return {exp8(x.low), exp8(x.high)}; }
    static inline __m256 exp8(__m256 x) {
        // The constant comes first: with a NaN, max and min return their second operand.
        x = _mm256_max_ps(_mm256_set1_ps(-110.0f), x);
        x = _mm256_min_ps(_mm256_set1_ps(90.0f), x);
        const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
        r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
        __m256 q = _mm256_set1_ps(0.0013814583653584123f);
        q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.008368724025785923f));
        q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.04166838899254799f));
        q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.1666652113199234f));
        q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(0.4999999403953552f));
        const __m256 p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(q, r), r, r), _mm256_set1_ps(1.0f));
        // 2^n in two halves, so that neither leaves the exponent's range.
        const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
        return _mm256_mul_ps(_mm256_mul_ps(p, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
    }
    static inline __m256 power_of_two(__m256i n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    }
};

}  // namespace ga
