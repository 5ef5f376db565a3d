// The scans of sampling for NEON. Limit: one pass over the logits; noise costs ten rounds of Philox for four tokens.
#include "arm/simd_neon.h"
#include "sample_kernels.h"

namespace ga {
namespace {

float maximum(const float* x, int64_t n) {
    float32x4_t best[4];
    for (float32x4_t& four : best) four = vdupq_n_f32(-__builtin_inff());
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int v = 0; v < 4; ++v) best[v] = vmaxnmq_f32(vld1q_f32(x + i + 4 * v), best[v]);  // a NaN loses
    float highest = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(best[0], best[1]), vmaxnmq_f32(best[2], best[3])));
    for (; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
    return highest;
}

// One bit for each of sixteen lanes that are all ones or all zeros.
inline uint64_t bits_of(const uint32x4_t (&lanes)[4]) {
    const uint16_t weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t weight = vld1q_u16(weights);
    const uint16x8_t low = vcombine_u16(vmovn_u32(lanes[0]), vmovn_u32(lanes[1]));
    const uint16x8_t high = vcombine_u16(vmovn_u32(lanes[2]), vmovn_u32(lanes[3]));
    return vaddvq_u16(vandq_u16(low, weight)) | static_cast<uint64_t>(vaddvq_u16(vandq_u16(high, weight))) << 8;
}

// Bit i of the result is bit i of the lanes that `test` gives for the four values from 4 * (i / 4) on.
template <class Test>
inline uint64_t scan(const Test& test) {
    uint64_t bits = 0;
    for (int i = 0; i < kScan; i += 16) {
        const uint32x4_t lanes[4] = {test(i), test(i + 4), test(i + 8), test(i + 12)};
        bits |= bits_of(lanes) << i;
    }
    return bits;
}

uint64_t above(const float* x, float limit) {
    return scan([&](int i) { return vcgtq_f32(vld1q_f32(x + i), vdupq_n_f32(limit)); });
}

// 2^n for integers n in [-2000, 0], in two halves, so that neither leaves the exponent's range.
inline float64x2_t power_of_two(int64x2_t n) {
    const int64x2_t half = vshrq_n_s64(n, 1);
    const auto power = [](int64x2_t e) {
        return vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(e, vdupq_n_s64(1023)), 52));
    };
    return vmulq_f64(power(half), power(vsubq_s64(n, half)));
}

// e^x for x <= 0 within 1 unit in the last place of float64, by the Taylor series of 13 terms on [-ln2 / 2, ln2 / 2].
inline float64x2_t exp2(float64x2_t x) {
    x = vmaxq_f64(vdupq_n_f64(-800.0), x);
    const float64x2_t n = vrndnq_f64(vmulq_f64(x, vdupq_n_f64(1.4426950408889634)));
    float64x2_t r = vfmsq_f64(x, n, vdupq_n_f64(0x1.62e42fefa3800p-1));  // ln 2, high bits
    r = vfmsq_f64(r, n, vdupq_n_f64(0x1.ef35793c76730p-45));             // and the rest
    float64x2_t p = vdupq_n_f64(1.0 / 6227020800.0);
    const double inverse_factorials[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                         1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                         1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0};
    for (const double c : inverse_factorials) p = vfmaq_f64(vdupq_n_f64(c), p, r);
    p = vfmaq_f64(vdupq_n_f64(1.0), p, r);
    return vmulq_f64(p, power_of_two(vcvtq_s64_f64(n)));
}

double sum_exp(const float* x, int64_t n, float highest, double temperature) {
    const float64x2_t top = vdupq_n_f64(static_cast<double>(highest) / temperature), t = vdupq_n_f64(temperature);
    const auto term = [&](float32x2_t two) { return exp2(vsubq_f64(vdivq_f64(vcvt_f64_f32(two), t), top)); };
    float64x2_t sums[2] = {vdupq_n_f64(0.0), vdupq_n_f64(0.0)};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t four = vld1q_f32(x + i);
        sums[0] = vaddq_f64(sums[0], term(vget_low_f32(four)));
        sums[1] = vaddq_f64(sums[1], term(vget_high_f32(four)));
    }
    double sum = vaddvq_f64(vaddq_f64(sums[0], sums[1]));
    for (; i < n; ++i) sum += vgetq_lane_f64(term(vdup_n_f32(x[i])), 0);
    return sum;
}

// High and low halves of four products of 32 bits.
inline void multiply(uint32x4_t a, uint32_t by, uint32x4_t& high, uint32x4_t& low) {
    const uint32x4_t left = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(a), by));
    const uint32x4_t right = vreinterpretq_u32_u64(vmull_n_u32(vget_high_u32(a), by));
    low = vuzp1q_u32(left, right);
    high = vuzp2q_u32(left, right);
}

// The words of four quads, one in each lane.
inline void words4(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    const uint32_t numbers[4] = {0, 1, 2, 3};
    uint32x4x4_t c = {{vdupq_n_u32(static_cast<uint32_t>(position)), vaddq_u32(vdupq_n_u32(quad), vld1q_u32(numbers)),
                       vdupq_n_u32(0), vdupq_n_u32(0)}};
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        uint32x4_t high0, low0, high1, low1;
        multiply(c.val[0], 0xD2511F53u, high0, low0);
        multiply(c.val[2], 0xCD9E8D57u, high1, low1);
        c.val[0] = veorq_u32(veorq_u32(high1, c.val[1]), vdupq_n_u32(k0));
        c.val[2] = veorq_u32(veorq_u32(high0, c.val[3]), vdupq_n_u32(k1));
        c.val[1] = low1;
        c.val[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    vst4q_u32(out, c);  // word 0 of quad 0, word 1 of quad 0, …
}

void words(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    for (uint32_t q = 0; q < kScan / 4; q += 4) words4(seed, position, quad + q, out + 4 * q);
}

uint64_t contenders(const float* x, const uint32_t* noise, float highest, float inverse, float lead) {
    return scan([&](int i) {
        const float32x4_t whole = vcvtq_f32_u32(vmvnq_u32(vld1q_u32(noise + i)));
        const float32x4_t rest = vmulq_n_f32(whole, 0x1p-32f * 0.999f);  // below 1 - u
        const float32x4_t shifted = vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(highest));
        const float32x4_t limit = Neon::exp4(vfmaq_f32(vdupq_n_f32(lead), shifted, vdupq_n_f32(inverse)));
        return vmvnq_u32(vcgtq_f32(rest, limit));  // NaN stays in
    });
}

}  // namespace

const SampleKernels sample_neon = {"neon", maximum, above, sum_exp, words, contenders};

}  // namespace ga
