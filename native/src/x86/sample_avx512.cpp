// The scans of sampling for AVX-512.
#include "sample_kernels.h"
#include "x86/simd_avx512.h"

namespace ga {
namespace {

float maximum(const float* x, int64_t n) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 best = lowest;
    int64_t i = 0;
    // best stands second: with a NaN, max returns its second operand.
    for (; i + 16 <= n; i += 16) best = _mm512_max_ps(_mm512_loadu_ps(x + i), best);
    if (i < n) best = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, Avx512::mask(static_cast<int>(n - i)), x + i), best);
    return _mm512_reduce_max_ps(best);
}

uint64_t above(const float* x, float limit) {
    uint64_t bits = 0;
    for (int v = 0; v < kScan / 16; ++v)
        bits |= static_cast<uint64_t>(
                    _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16 * v), _mm512_set1_ps(limit), _CMP_GT_OQ))
                << (16 * v);
    return bits;
}

// e^x for x <= 0 within 1 unit in the last place of float64, by the Taylor series of 13 terms on [-ln2 / 2, ln2 / 2].
inline __m512d exp_pd(__m512d x) {
    x = _mm512_max_pd(_mm512_set1_pd(-800.0), x);
    const __m512d n = _mm512_roundscale_pd(_mm512_mul_pd(x, _mm512_set1_pd(1.4426950408889634)),
                                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(0x1.62e42fefa3800p-1), x);  // ln 2, high bits
    r = _mm512_fnmadd_pd(n, _mm512_set1_pd(0x1.ef35793c76730p-45), r);         // and the rest
    __m512d p = _mm512_set1_pd(1.0 / 6227020800.0);
    const double inverse_factorials[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                         1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                         1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0};
    for (const double c : inverse_factorials) p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(c));
    p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(1.0));
    return _mm512_scalef_pd(p, n);
}

double sum_exp(const float* x, int64_t n, float highest, double temperature) {
    const __m512d top = _mm512_set1_pd(static_cast<double>(highest) / temperature), t = _mm512_set1_pd(temperature);
    __m512d sum = _mm512_setzero_pd();
    for (int64_t i = 0; i < n; i += 8) {
        const __mmask8 in = n - i >= 8 ? 0xFF : static_cast<__mmask8>((1u << (n - i)) - 1u);
        const __m512d value = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(in, x + i));
        const __m512d e = exp_pd(_mm512_sub_pd(_mm512_div_pd(value, t), top));
        sum = _mm512_mask_add_pd(sum, in, sum, e);
    }
    return _mm512_reduce_add_pd(sum);
}

// High and low halves of 16 products of 32 bits.
inline void multiply(__m512i a, uint32_t by, __m512i& high, __m512i& low) {
    const __m512i m = _mm512_set1_epi32(static_cast<int>(by));
    const __m512i even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
}

void words(uint64_t seed, int32_t position, uint32_t quad, uint32_t* out) {
    // Quads in the order in which the 4x4 transposes below put their words side by side.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i c0 = _mm512_set1_epi32(position);
    __m512i c1 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(quad)), order);
    __m512i c2 = _mm512_setzero_si512(), c3 = _mm512_setzero_si512();
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        __m512i high0, low0, high1, low1;
        multiply(c0, 0xD2511F53u, high0, low0);
        multiply(c2, 0xCD9E8D57u, high1, low1);
        c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), _mm512_set1_epi32(static_cast<int>(k0)));
        c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), _mm512_set1_epi32(static_cast<int>(k1)));
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpacklo_epi32(c2, c3);
    const __m512i c = _mm512_unpackhi_epi32(c0, c1), d = _mm512_unpackhi_epi32(c2, c3);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(a, b));
    _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi64(a, b));
    _mm512_storeu_si512(out + 32, _mm512_unpacklo_epi64(c, d));
    _mm512_storeu_si512(out + 48, _mm512_unpackhi_epi64(c, d));
}

uint64_t contenders(const float* x, const uint32_t* noise, float highest, float inverse, float lead) {
    uint64_t bits = 0;
    for (int v = 0; v < kScan / 16; ++v) {
        const __m512i flipped = _mm512_xor_si512(_mm512_loadu_si512(noise + 16 * v), _mm512_set1_epi32(-1));
        const __m512 rest = _mm512_mul_ps(_mm512_cvtepu32_ps(flipped), _mm512_set1_ps(0x1p-32f * 0.999f));
        const __m512 shifted = _mm512_sub_ps(_mm512_loadu_ps(x + 16 * v), _mm512_set1_ps(highest));
        const __m512 limit = Avx512::exp(_mm512_fmadd_ps(shifted, _mm512_set1_ps(inverse), _mm512_set1_ps(lead)));
        bits |= static_cast<uint64_t>(_mm512_cmp_ps_mask(rest, limit, _CMP_NGT_UQ)) << (16 * v);  // NaN stays in
    }
    return bits;
}

}  // namespace

const SampleKernels sample_avx512 = {"avx512", maximum, above, sum_exp, words, contenders};

}  // namespace ga
