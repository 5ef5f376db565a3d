// Sixteen float lanes as four NEON registers: the twin of simd_portable.h, with the same members.
#pragma once
#include <arm_neon.h>
#include <stdint.h>

namespace ga {

// Every member works lane by lane, so a lane's value never depends on its place or on its neighbours.
struct Neon {
    static constexpr const char* kName = "neon";
    static constexpr int kDotRows = 2;  // 2 rows x 1 panel x 2 sums x 4 registers fill 16 of 32, the keys 8
    static constexpr int kMixRows = 4;
    static constexpr int kWidePanels = 1;
    static constexpr int kFewRows = 1;
    static constexpr int kFewPanels = 2;
    static constexpr int kCodeRows = 2;
    static constexpr int kMixVectors = 1;
    static constexpr int kParts = 4;

    struct F {
        float32x4_t v[kParts];
    };

    template <class Part>
    [[gnu::always_inline]] static inline F each(const Part& part) {
        return {{part(0), part(1), part(2), part(3)}};
    }

    static inline F set1(float a) { return each([&](int) { return vdupq_n_f32(a); }); }
    static inline F zero() { return set1(0.0f); }
    static inline F load(const float* p) { return each([&](int i) { return vld1q_f32(p + 4 * i); }); }
    // The first n lanes; the others are 0. Nothing is read past them.
    static inline F load_n(const float* p, int n) {
        if (n == 16) return load(p);
        float lanes[16] = {};
        for (int i = 0; i < n; ++i) lanes[i] = p[i];
        return load(lanes);
    }
    static inline void store(float* p, F a) {
        for (int i = 0; i < kParts; ++i) vst1q_f32(p + 4 * i, a.v[i]);
    }
    static inline void store_n(float* p, F a, int n) {
        if (n == 16) return store(p, a);
        float lanes[16];
        store(lanes, a);
        for (int i = 0; i < n; ++i) p[i] = lanes[i];
    }

    static inline F add(F a, F b) { return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
    static inline F sub(F a, F b) { return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
    static inline F mul(F a, F b) { return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
    static inline F div(F a, F b) { return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
    static inline F max(F a, F b) { return each([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); }); }  // NaN wins
    static inline F fma(F a, F b, F c) { return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
    static inline F swap_pairs(F a) { return each([&](int i) { return vrev64q_f32(a.v[i]); }); }
    // Lanes from n on become `other`.
    static inline F first_n(F a, int n, float other) {
        const int32_t numbers[4] = {0, 1, 2, 3};
        const int32x4_t lane = vld1q_s32(numbers);
        return each([&](int i) {
            const uint32x4_t stays = vcltq_s32(lane, vdupq_n_s32(n - 4 * i));
            return vbslq_f32(stays, a.v[i], vdupq_n_f32(other));
        });
    }

    static inline float reduce_add(F a) {
        const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    static inline float reduce_max(F a) {
        return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3])));
    }

    static inline float first(F a) { return vgetq_lane_f32(a.v[0], 0); }
    static inline void prefetch(const void* p) { __builtin_prefetch(p); }

    // Four pairs of bfloat16, 16 bytes: element 0 of each pair, and element 1.
    static inline float32x4_t even4(uint32x4_t pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
    static inline float32x4_t odd4(uint32x4_t pairs) {
        return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000u)));
    }
    static inline uint32x4_t pairs4(const void* p) {
        return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
    }

    // Sixteen pairs: element 0 of each pair, and element 1.
    static inline void load_pairs(const uint16_t* p, F& even, F& odd) {
        for (int i = 0; i < kParts; ++i) {
            const uint32x4_t pairs = pairs4(p + 8 * i);
            even.v[i] = even4(pairs);
            odd.v[i] = odd4(pairs);
        }
    }
    static inline void load_pairs(const float* p, F& even, F& odd) {
        even = load(p);
        odd = load(p + 16);
    }

    // Sixteen pairs of 8-bit codes as 16-bit integers, split into those of element 0 and of element 1, and sixteen sums
    // of 32 bits.
    struct Codes {
        int16x8_t even[2], odd[2];
    };
    struct I {
        int32x4_t v[kParts];
    };
    static inline I zero_int() {
        const int32x4_t none = vdupq_n_s32(0);
        return {{none, none, none, none}};
    }
    static inline Codes load_codes(const int8_t* p) {
        const int8x16x2_t c = vld2q_s8(p);
        return {{vmovl_s8(vget_low_s8(c.val[0])), vmovl_high_s8(c.val[0])},
                {vmovl_s8(vget_low_s8(c.val[1])), vmovl_high_s8(c.val[1])}};
    }
    // sum + a pair of 16-bit integers times each pair of codes; the caller keeps sums within 32 bits.
    static inline I dot(I sum, int32_t pair, Codes c) {
        const auto a = static_cast<int16_t>(pair & 0xFFFF), b = static_cast<int16_t>(pair >> 16);
        for (int i = 0; i < 2; ++i) {
            int32x4_t &low = sum.v[2 * i], &high = sum.v[2 * i + 1];
            low = vmlal_n_s16(vmlal_n_s16(low, vget_low_s16(c.even[i]), a), vget_low_s16(c.odd[i]), b);
            high = vmlal_high_n_s16(vmlal_high_n_s16(high, c.even[i], a), c.odd[i], b);
        }
        return sum;
    }
    static inline F to_float(I a) {
        return each([&](int i) { return vcvtq_f32_s32(a.v[i]); });
    }
    // Rounded to even; |a| <= 32767.
    static inline void store_codes(int16_t* p, F a) {
        for (int i = 0; i < kParts; ++i) vst1_s16(p + 4 * i, vmovn_s32(vcvtnq_s32_f32(a.v[i])));
    }

    // e^x within 2 units in the last place; 0 below -104, inf above 89.
    static inline F exp(F x) { return each([&](int i) { return exp4(x.v[i]); }); }
    static inline float32x4_t exp4(float32x4_t x) {
        x = vmaxq_f32(vdupq_n_f32(-110.0f), x);  // NaN stays NaN
        x = vminq_f32(vdupq_n_f32(90.0f), x);
        const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
        float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
        r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
        float32x4_t q = vdupq_n_f32(0.0013814583653584123f);
        q = vfmaq_f32(vdupq_n_f32(0.008368724025785923f), q, r);
        q = vfmaq_f32(vdupq_n_f32(0.04166838899254799f), q, r);
        q = vfmaq_f32(vdupq_n_f32(0.1666652113199234f), q, r);
        q = vfmaq_f32(vdupq_n_f32(0.4999999403953552f), q, r);
        const float32x4_t p = vaddq_f32(vfmaq_f32(r, vmulq_f32(q, r), r), vdupq_n_f32(1.0f));
        // 2^n in two halves, so that neither leaves the exponent's range.
        const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
        return vmulq_f32(vmulq_f32(p, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
    }
    static inline float32x4_t power_of_two(int32x4_t n) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
    }
};

}  // namespace ga
