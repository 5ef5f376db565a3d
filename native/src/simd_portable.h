// Sixteen float lanes in plain C++: the portable twin of x86/simd_avx2.h and simd_avx512.h, with the same members.
#pragma once
#include <stdint.h>
#include <string.h>

#include "round_even.h"

namespace ga {

// Every member works lane by lane, so a lane's value never depends on its place or on its neighbours.
struct Portable {
    static constexpr const char* kName = "generic";
    static constexpr int kDotRows = 2;    // rows of a score tile: what the registers of a 128-bit machine hold
    static constexpr int kMixRows = 2;    // rows of a value tile
    static constexpr int kWidePanels = 1; // panels of a score tile
    static constexpr int kFewRows = 1;    // up to so many rows take …
    static constexpr int kFewPanels = 2;  // … so many panels at once
    static constexpr int kMixVectors = 2; // vectors of a value tile
    static constexpr int kCodeRows = 2;   // rows of a tile of 8-bit codes

    struct F {
        float v[16];
    };

    static inline F set1(float a) {
        F r;
        for (int i = 0; i < 16; ++i) r.v[i] = a;
        return r;
    }
    static inline F zero() { return set1(0.0f); }
    static inline F load(const float* p) {
        F r;
        memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static inline F load_n(const float* p, int n) {
        F r = zero();
        memcpy(r.v, p, sizeof(float) * static_cast<size_t>(n));
        return r;
    }
    static inline void store(float* p, const F& a) { memcpy(p, a.v, sizeof a.v); }
    static inline void store_n(float* p, const F& a, int n) { memcpy(p, a.v, sizeof(float) * static_cast<size_t>(n)); }

    static inline F add(F a, const F& b) {
        for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
        return a;
    }
    static inline F sub(F a, const F& b) {
        for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
        return a;
    }
    static inline F mul(F a, const F& b) {
        for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
        return a;
    }
    static inline F div(F a, const F& b) {
        for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i];
        return a;
    }
    static inline F max(F a, const F& b) {
        for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
        return a;
    }
    // a * b + c with two roundings: portable code must not depend on a fused instruction.
    static inline F fma(const F& a, const F& b, F c) {
        for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b.v[i];
        return c;
    }
    static inline F swap_pairs(const F& a) {
        F r;
        for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ 1];
        return r;
    }
    // Lanes from n on become `other`.
    static inline F first_n(F a, int n, float other) {
        for (int i = n < 0 ? 0 : n; i < 16; ++i) a.v[i] = other;
        return a;
    }

    static inline float reduce_add(F a) {
        for (int w = 8; w > 0; w /= 2)
            for (int i = 0; i < w; ++i) a.v[i] += a.v[i + w];
        return a.v[0];
    }
    static inline float reduce_max(F a) {
        for (int w = 8; w > 0; w /= 2)
            for (int i = 0; i < w; ++i) a.v[i] = a.v[i] > a.v[i + w] ? a.v[i] : a.v[i + w];
        return a.v[0];
    }

    static inline float first(const F& a) { return a.v[0]; }
    static inline void prefetch(const void* p) { __builtin_prefetch(p); }

    // Sixteen pairs: element 0 of each pair, and element 1.
    static inline void load_pairs(const uint16_t* p, F& even, F& odd) {
        for (int i = 0; i < 16; ++i) {
            even.v[i] = from_bf16(p[2 * i]);
            odd.v[i] = from_bf16(p[2 * i + 1]);
        }
    }
    static inline void load_pairs(const float* p, F& even, F& odd) {
        even = load(p);
        odd = load(p + 16);
    }
    // Sixteen pairs of 8-bit codes, and sixteen sums of 32 bits.
    struct Codes {
        int8_t v[32];
    };
    struct I {
        int32_t v[16];
    };
    static inline I zero_int() { return I{}; }
    static inline Codes load_codes(const int8_t* p) {
        Codes r;
        memcpy(r.v, p, sizeof r.v);
        return r;
    }
    // sum + a pair of 16-bit integers times each pair of codes; the caller keeps sums within 32 bits.
    static inline I dot(I sum, int32_t pair, const Codes& c) {
        const int32_t a = static_cast<int16_t>(pair & 0xFFFF), b = pair >> 16;
        for (int i = 0; i < 16; ++i) sum.v[i] += a * c.v[2 * i] + b * c.v[2 * i + 1];
        return sum;
    }
    static inline F to_float(const I& a) {
        F r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
        return r;
    }
    // Rounded to even; |a| <= 32767.
    static inline void store_codes(int16_t* p, const F& a) {
        for (int i = 0; i < 16; ++i) {
            const float whole = round_even(a.v[i]);
            p[i] = whole == whole ? static_cast<int16_t>(whole) : int16_t{0};
        }
    }
    static inline float from_bf16(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }
    static inline float from_bits(uint32_t u) {
        float f;
        memcpy(&f, &u, sizeof f);
        return f;
    }

    // e^x within 2 units in the last place; 0 below -104, inf above 89.
    static inline F exp(F x) {
        for (int i = 0; i < 16; ++i) x.v[i] = exp1(x.v[i]);
        return x;
    }
    static inline float exp1(float x) {
        x = x < -110.0f ? -110.0f : x;
        x = x > 90.0f ? 90.0f : x;
        const float n = round_even(x * 1.44269504f);
        const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
        float q = 0.0013814583653584123f;
        q = q * r + 0.008368724025785923f;
        q = q * r + 0.04166838899254799f;
        q = q * r + 0.1666652113199234f;
        q = q * r + 0.4999999403953552f;
        const float p = (q * r) * r + r + 1.0f;
        // 2^n in two halves, so that neither leaves the exponent's range.
        const int32_t whole = n == n ? static_cast<int32_t>(n) : 0;
        const int32_t half = whole / 2;
        return (p * from_bits(static_cast<uint32_t>(half + 127) << 23)) *
               from_bits(static_cast<uint32_t>(whole - half + 127) << 23);
    }
};

}  // namespace ga
