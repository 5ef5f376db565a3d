// The scans of sampling for AVX2.
#include "sample_kernels.h"
#include "x86/simd_avx2.h"

namespace ga {
namespace {

float maximum(const float* x, int64_t n) {
    const float lowest = -__builtin_inff();
    __m256 best[2] = {_mm256_set1_ps(lowest), _mm256_set1_ps(lowest)};
    int64_t i = 0;
    // best stands second: with a NaN, max returns its second operand.
    for (; i + 16 <= n; i += 16)
        for (int v = 0; v < 2; ++v) best[v] = _mm256_max_ps(_mm256_loadu_ps(x + i + 8 * v), best[v]);
    float highest = Avx2::reduce_max({best[0], best[1]});
    for (; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
    return highest;
}

uint64_t above(const float* x, float limit) {
    uint64_t bits = 0;
    for (int v = 0; v < kScan / 8; ++v) {
        const __m256 more = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * v), _mm256_set1_ps(limit), _CMP_GT_OQ);
        bits |= static_cast<uint64_t>(_mm256_movemask_ps(more)) << (8 * v);
    }
    return bits;
}

// 2^n for integers n in [-2000, 0], in two halves, so that neither leaves the exponent's range.
inline __m256d power_of_two(__m128i n) {
    const __m256i whole = _mm256_cvtepi32_epi64(n), half = _mm256_cvtepi32_epi64(_mm_srai_epi32(n, 1));
    const auto power = [](__m256i e) {
        return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(e, _mm256_set1_epi64x(1023)), 52));
    };
    return _mm256_mul_pd(power(half), power(_mm256_sub_epi64(whole, half)));
}

// e^x for x <= 0 within 1 unit in the last place of float64, by the Taylor series of 13 terms on [-ln2 / 2, ln2 / 2].
inline __m256d exp_pd(__m256d x) {
    x = _mm256_max_pd(_mm256_set1_pd(-800.0), x);
    const __m256d n = _mm256_round_pd(_mm256_mul_pd(x, _mm256_set1_pd(1.4426950408889634)),
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256d r = _mm256_fnmadd_pd(n, _mm256_set1_pd(0x1.62e42fefa3800p-1), x);  // ln 2, high bits
    r = _mm256_fnmadd_pd(n, _mm256_set1_pd(0x1.ef35793c76730p-45), r);         // and the rest
    __m256d p = _mm256_set1_pd(1.0 / 6227020800.0);
    const double inverse_factorials[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                         1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                         1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0};
    for (const double c : inverse_factorials) p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(c));
    p = _mm256_fmadd_pd(p, r, _mm256_set1_pd(1.0));
    return _mm256_mul_pd(p, power_of_two(_mm256_cvtpd_epi32(n)));
}

double sum_exp(const float* x, int64_t n, float highest, double temperature) {
    const __m256d top = _mm256_set1_pd(static_cast<double>(highest) / temperature), t = _mm256_set1_pd(temperature);
    __m256d sum = _mm256_setzero_pd();
    for (int64_t i = 0; i < n; i += 4) {
        const __m128i in = _mm256_castsi256_si128(Avx2::mask8(n - i >= 4 ? 4 : static_cast<int>(n - i)));
        const __m256d value = _mm256_cvtps_pd(_mm_maskload_ps(x + i, in));
        const __m256d e = exp_pd(_mm256_sub_pd(_mm256_div_pd(value, t), top));
        sum = _mm256_add_pd(sum, _mm256_and_pd(e, _mm256_castsi256_pd(_mm256_cvtepi32_epi64(in))));
    }
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// High and low halves of 8 products of 32 bits.
inline void multiply(__m256i a, uint32_t by, __m256i& high, __m256i& low) {
    const __m256i m = _mm256_set1_epi32(static_cast<int>(by));
    const __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}

// The words of eight quads.
inline void words8(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    // Quads in the order in which the 4x4 transposes below put their words side by side.
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    __m256i c0 = _mm256_set1_epi32(position);
    __m256i c1 = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(quad)), order);
    __m256i c2 = _mm256_setzero_si256(), c3 = _mm256_setzero_si256();
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        __m256i high0, low0, high1, low1;
        multiply(c0, 0xD2511F53u, high0, low0);
        multiply(c2, 0xCD9E8D57u, high1, low1);
        c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), _mm256_set1_epi32(static_cast<int>(k0)));
        c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), _mm256_set1_epi32(static_cast<int>(k1)));
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const __m256i a = _mm256_unpacklo_epi32(c0, c1), b = _mm256_unpacklo_epi32(c2, c3);
    const __m256i c = _mm256_unpackhi_epi32(c0, c1), d = _mm256_unpackhi_epi32(c2, c3);
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_unpacklo_epi64(a, b));
    _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(a, b));
    _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi64(c, d));
    _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi64(c, d));
}

void words(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    words8(seed, position, quad, out);
    words8(seed, position, quad + 8, out + 32);
}

// Unsigned integers to floats: two exact halves, added with one rounding.
inline __m256 unsigned_to_float(__m256i u) {
    const __m256 high = _mm256_cvtepi32_ps(_mm256_srli_epi32(u, 16));
    const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(u, _mm256_set1_epi32(0xFFFF)));
    return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
}

uint64_t contenders(const float* x, const uint32_t* noise, float highest, float inverse, float lead) {
    uint64_t bits = 0;
    for (int v = 0; v < kScan / 8; ++v) {
        const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(noise + 8 * v));
        const __m256i flipped = _mm256_xor_si256(word, _mm256_set1_epi32(-1));
        const __m256 rest = _mm256_mul_ps(unsigned_to_float(flipped), _mm256_set1_ps(0x1p-32f * 0.999f));
        const __m256 shifted = _mm256_sub_ps(_mm256_loadu_ps(x + 8 * v), _mm256_set1_ps(highest));
        const __m256 limit = Avx2::exp8(_mm256_fmadd_ps(shifted, _mm256_set1_ps(inverse), _mm256_set1_ps(lead)));
        const __m256 stays = _mm256_cmp_ps(rest, limit, _CMP_NGT_UQ);  // NaN stays in
        bits |= static_cast<uint64_t>(_mm256_movemask_ps(stays)) << (8 * v);
    }
    return bits;
}

}  // namespace

const SampleKernels sample_avx2 = {"avx2", maximum, above, sum_exp, words, contenders};

}  // namespace ga
