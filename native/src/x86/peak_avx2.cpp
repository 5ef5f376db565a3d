// Peak of AVX2: independent sums of the FMA instruction, and of the steps that stand for a product of bytes.
#include "peak_burn.h"
#include "peak_kernels.h"
#include "read_streams.h"
#include "x86/simd_avx2.h"

namespace ga {
namespace {

constexpr int kSums = 12;  // four of sixteen registers are left for operands

// bfloat16 products are this too, after a shift of the weights that many rows share.
void burn_float32(int64_t rounds) {
    const __m256 factor = _mm256_set1_ps(0.5f);
    burn<__m256, kSums>(
        rounds, [](int i) { return _mm256_set1_ps(static_cast<float>(i)); },
        [&](__m256 sum) { return _mm256_fmadd_ps(sum, factor, factor); });
}

void burn_int8(int64_t rounds) {
    const __m256i weights = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    burn<__m256i, kSums>(
        rounds, [](int i) { return _mm256_set1_epi32(i); },
        [&](__m256i sum) {
            __m256i x = weights;
            asm volatile("" : "+v"(x));  // a new value in each step
            const __m256i pairs = _mm256_maddubs_epi16(weights, _mm256_sign_epi8(x, weights));
            return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        });
}

void burn_int4(int64_t rounds) {
    const __m256i weights = _mm256_set1_epi8(3);
    burn<__m256i, kSums>(
        rounds, [](int i) { return _mm256_set1_epi16(static_cast<short>(i)); },
        [&](__m256i sum) {
            __m256i x = weights;
            asm volatile("" : "+v"(x));  // a new value in each step
            return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
        });
}

}  // namespace

const PeakKernels peak_avx2 = {{kSums * 16, kSums * 16, kSums * 64, kSums * 64},
                               {burn_float32, burn_float32, burn_int8, burn_int4}};

const ReadKernels read_avx2 = {{read_streams<1>, read_streams<2>, read_streams<4>, read_streams<8>}};

}  // namespace ga
