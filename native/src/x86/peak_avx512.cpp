// Peak of AVX-512: sixteen independent sums of the FMA, BF16 and VNNI instructions.
#include "peak_burn.h"
#include "peak_kernels.h"
#include "read_streams.h"
#include "x86/simd_avx512.h"

namespace ga {
namespace {

constexpr int kSums = 16;

void burn_float32(int64_t rounds) {
    const __m512 factor = _mm512_set1_ps(0.5f);
    burn<__m512, kSums>(
        rounds, [](int i) { return _mm512_set1_ps(static_cast<float>(i)); },
        [&](__m512 sum) { return _mm512_fmadd_ps(sum, factor, factor); });
}

void burn_bfloat16(int64_t rounds) {
    const __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3f00);
    burn<__m512, kSums>(
        rounds, [](int i) { return _mm512_set1_ps(static_cast<float>(i)); },
        [&](__m512 sum) { return _mm512_dpbf16_ps(sum, factor, factor); });
}

void burn_int8(int64_t rounds) {
    const __m512i factor = _mm512_set1_epi8(3);
    burn<__m512i, kSums>(
        rounds, [](int i) { return _mm512_set1_epi32(i); },
        [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, factor, factor); });
}

}  // namespace

const PeakKernels peak_avx512 = {{kSums * 32, kSums * 64, kSums * 128, kSums * 128},
                                 {burn_float32, burn_bfloat16, burn_int8, burn_int8}};

const ReadKernels read_avx512 = {{read_streams<1>, read_streams<2>, read_streams<4>, read_streams<8>}};

}  // namespace ga
