// The intrinsics' names, as macros for what emulated_avx512.h defines. See there.
#pragma once

#define _mm512_load_ps(p) ga_emulated::load<__m512>(p)
#define _mm512_loadu_ps(p) ga_emulated::load<__m512>(p)
#define _mm512_load_si512(p) ga_emulated::load<__m512i>(p)
#define _mm512_loadu_si512(p) ga_emulated::load<__m512i>(p)
#define _mm512_stream_load_si512(p) ga_emulated::load<__m512i>(p)
#define _mm512_store_ps(p, a) ga_emulated::store<__m512>(p, a)
#define _mm512_storeu_ps(p, a) ga_emulated::store<__m512>(p, a)
#define _mm512_store_si512(p, a) ga_emulated::store<__m512i>(p, a)
#define _mm512_storeu_si512(p, a) ga_emulated::store<__m512i>(p, a)
#define _mm512_mask_loadu_ps(from, k, p) ga_emulated::mask_load<float, __m512>(from, k, p)
#define _mm512_maskz_loadu_ps(k, p) ga_emulated::mask_load<float, __m512>(__m512{}, k, p)
#define _mm256_maskz_loadu_ps(k, p) ga_emulated::mask_load<float, __m256>(__m256{}, k, p)
#define _mm512_maskz_loadu_epi8(k, p) ga_emulated::mask_load<char, __m512i>(__m512i{}, k, p)
#define _mm256_maskz_loadu_epi16(k, p) ga_emulated::mask_load<short, __m256i>(__m256i{}, k, p)
#define _mm_maskz_loadu_epi8(k, p) ga_emulated::mask_load<char, __m128i>(__m128i{}, k, p)
#define _mm512_mask_storeu_ps(p, k, a) ga_emulated::mask_store<float, __m512>(p, k, a)
#define _mm512_mask_storeu_epi8(p, k, a) ga_emulated::mask_store<char, __m512i>(p, k, a)
#define _mm256_mask_storeu_epi16(p, k, a) ga_emulated::mask_store<short, __m256i>(p, k, a)
#define _mm_mask_storeu_epi8(p, k, a) ga_emulated::mask_store<char, __m128i>(p, k, a)
#define _mm512_mask_mov_ps(from, k, a) ga_emulated::mask_mov<float, __m512>(from, k, a)
#define _mm512_mask_mov_epi32(from, k, a) ga_emulated::mask_mov<int, __m512i>(from, k, a)
#define _mm512_mask_blend_ps(k, a, b) ga_emulated::mask_mov<float, __m512>(a, k, b)
#define _mm512_mask_blend_epi32(k, a, b) ga_emulated::mask_mov<int, __m512i>(a, k, b)
#define _mm512_mask_add_pd(from, k, a, b) ga_emulated::mask_mov<double, __m512d>(from, k, (a) + (b))
#define _mm512_movepi8_mask(a) ga_emulated::sign_mask<int8_t, __m512i>(a)

#define _mm512_setzero_ps() __m512{}
#define _mm512_setzero_pd() __m512d{}
#define _mm512_setzero_si512() __m512i{}
#define _mm512_set1_ps(a) ga_emulated::set1_ps(a)
#define _mm512_set1_pd(a) ga_emulated::set1_pd(a)
#define _mm512_set1_epi8(a) ga_emulated::twice(_mm256_set1_epi8(a))
#define _mm512_set1_epi16(a) ga_emulated::twice(_mm256_set1_epi16(a))
#define _mm512_set1_epi32(a) ga_emulated::twice(_mm256_set1_epi32(a))
#define _mm512_set1_epi64(a) ga_emulated::twice(_mm256_set1_epi64x(a))
#undef _mm512_setr_epi32  // a macro of GCC's
#define _mm512_setr_epi32(...) ga_emulated::setr_epi32(__VA_ARGS__)
#define _mm512_broadcast_i32x4(a) ga_emulated::twice(_mm256_broadcastsi128_si256(a))
#define _mm512_broadcast_i64x4(a) ga_emulated::twice(a)

#define _mm512_castps_si512(a) ((__m512i)(a))
#define _mm512_castsi512_ps(a) ((__m512)(a))
#define _mm512_castsi512_si256(a) ga_emulated::half_of<__m256i>(a, 0)
#define _mm512_castps512_ps256(a) ga_emulated::half_of<__m256>(a, 0)
#define _mm512_extracti64x4_epi64(a, i) ga_emulated::half_of<__m256i>(a, i)
#define _mm512_extractf32x8_ps(a, i) ga_emulated::half_of<__m256>(a, i)
#define _mm512_inserti64x4(a, b, i) \
    ga_emulated::joined<__m512i>((i) ? ga_emulated::half_of<__m256i>(a, 0) : (b), (i) ? (b) : ga_emulated::half_of<__m256i>(a, 1))
#define _mm512_cvtss_f32(a) ((a)[0])
#define _mm512_cvtepi32_ps(a) ga_emulated::cvtepi32_ps(a)
#define _mm512_cvtepu32_ps(a) ga_emulated::cvtepu32_ps(a)
#define _mm512_cvtps_epi32(a) ga_emulated::cvtps_epi32(a)
#define _mm512_cvtph_ps(a) ga_emulated::cvtph_ps(a)
#define _mm512_cvtps_pd(a) ga_emulated::cvtps_pd(a)
#define _mm512_cvtneps_pbh(a) ga_emulated::cvtneps_pbh(a)
#define _mm512_cvtne2ps_pbh(high, low) ga_emulated::cvtne2ps_pbh(high, low)
#define _mm512_cvtsepi32_epi16(a) ga_emulated::cvtsepi32_epi16(a)
#define _mm512_cvtepi32_epi8(a) ga_emulated::lanes_to<int32_t, int8_t, __m512i, __m128i>(a)
#define _mm512_cvtepi32_epi16(a) ga_emulated::lanes_to<int32_t, int16_t, __m512i, __m256i>(a)
#define _mm512_cvtepi16_epi8(a) ga_emulated::lanes_to<int16_t, int8_t, __m512i, __m256i>(a)
#define _mm512_cvtepi8_epi32(a) ga_emulated::lanes_to<int8_t, int32_t, __m128i, __m512i>(a)
#define _mm512_cvtepu8_epi32(a) ga_emulated::lanes_to<uint8_t, int32_t, __m128i, __m512i>(a)
#define _mm512_cvtepi8_epi16(a) ga_emulated::lanes_to<int8_t, int16_t, __m256i, __m512i>(a)
#define _mm512_cvtepu8_epi16(a) ga_emulated::lanes_to<uint8_t, int16_t, __m256i, __m512i>(a)
#define _mm512_cvtepi16_epi32(a) ga_emulated::lanes_to<int16_t, int32_t, __m256i, __m512i>(a)
#define _mm512_cvtepu16_epi32(a) ga_emulated::lanes_to<uint16_t, int32_t, __m256i, __m512i>(a)

#define _mm512_add_ps(a, b) ((__m512)(a) + (__m512)(b))
#define _mm512_sub_ps(a, b) ((__m512)(a) - (__m512)(b))
#define _mm512_mul_ps(a, b) ((__m512)(a) * (__m512)(b))
#define _mm512_div_ps(a, b) ((__m512)(a) / (__m512)(b))
#define _mm512_sub_pd(a, b) ((__m512d)(a) - (__m512d)(b))
#define _mm512_mul_pd(a, b) ((__m512d)(a) * (__m512d)(b))
#define _mm512_div_pd(a, b) ((__m512d)(a) / (__m512d)(b))
// As functions in namespace ga_emulated, so that the macros of halves see their names.
namespace ga_emulated {
GA_EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) { return GA_HALVES_PS(_mm256_fmadd_ps, a, b, c); }
GA_EMULATED __m512 fnmadd_ps(__m512 a, __m512 b, __m512 c) { return GA_HALVES_PS(_mm256_fnmadd_ps, a, b, c); }
GA_EMULATED __m512d fmadd_pd(__m512d a, __m512d b, __m512d c) { return GA_HALVES_PD(_mm256_fmadd_pd, a, b, c); }
GA_EMULATED __m512d fnmadd_pd(__m512d a, __m512d b, __m512d c) { return GA_HALVES_PD(_mm256_fnmadd_pd, a, b, c); }
GA_EMULATED __m512 max_ps(__m512 a, __m512 b) { return GA_HALVES_PS(_mm256_max_ps, a, b); }
GA_EMULATED __m512 min_ps(__m512 a, __m512 b) { return GA_HALVES_PS(_mm256_min_ps, a, b); }
GA_EMULATED __m512d max_pd(__m512d a, __m512d b) { return GA_HALVES_PD(_mm256_max_pd, a, b); }
GA_EMULATED __m512i max_epu32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_max_epu32, a, b); }
GA_EMULATED __m512i max_epi32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_max_epi32, a, b); }
GA_EMULATED __m512i min_epi32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_min_epi32, a, b); }
GA_EMULATED __m512i mul_epu32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_mul_epu32, a, b); }
GA_EMULATED __m512i madd_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_madd_epi16, a, b); }
GA_EMULATED __m512i maddubs_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_maddubs_epi16, a, b); }
GA_EMULATED __m512i mulhrs_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_mulhrs_epi16, a, b); }
GA_EMULATED __m512i abs_epi8(__m512i a) { return GA_HALVES_SI(_mm256_abs_epi8, a); }
GA_EMULATED __m512i shuffle_epi8(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_shuffle_epi8, a, b); }
GA_EMULATED __m512i packus_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_packus_epi16, a, b); }
GA_EMULATED __m512i packs_epi32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_packs_epi32, a, b); }
GA_EMULATED __m512i unpacklo_epi8(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpacklo_epi8, a, b); }
GA_EMULATED __m512i unpackhi_epi8(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpackhi_epi8, a, b); }
GA_EMULATED __m512i unpacklo_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpacklo_epi16, a, b); }
GA_EMULATED __m512i unpackhi_epi16(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpackhi_epi16, a, b); }
GA_EMULATED __m512i unpacklo_epi32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpacklo_epi32, a, b); }
GA_EMULATED __m512i unpackhi_epi32(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpackhi_epi32, a, b); }
GA_EMULATED __m512i unpacklo_epi64(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpacklo_epi64, a, b); }
GA_EMULATED __m512i unpackhi_epi64(__m512i a, __m512i b) { return GA_HALVES_SI(_mm256_unpackhi_epi64, a, b); }
}  // namespace ga_emulated
#define _mm512_fmadd_ps ga_emulated::fmadd_ps
#define _mm512_fnmadd_ps ga_emulated::fnmadd_ps
#define _mm512_fmadd_pd ga_emulated::fmadd_pd
#define _mm512_fnmadd_pd ga_emulated::fnmadd_pd
#define _mm512_max_ps ga_emulated::max_ps
#define _mm512_min_ps ga_emulated::min_ps
#define _mm512_max_pd ga_emulated::max_pd
#define _mm512_max_epu32 ga_emulated::max_epu32
#define _mm512_max_epi32 ga_emulated::max_epi32
#define _mm512_min_epi32 ga_emulated::min_epi32
#define _mm512_mul_epu32 ga_emulated::mul_epu32
#define _mm512_madd_epi16 ga_emulated::madd_epi16
#define _mm512_maddubs_epi16 ga_emulated::maddubs_epi16
#define _mm512_mulhrs_epi16 ga_emulated::mulhrs_epi16
#define _mm512_abs_epi8 ga_emulated::abs_epi8
#define _mm512_shuffle_epi8 ga_emulated::shuffle_epi8
#define _mm512_packus_epi16 ga_emulated::packus_epi16
#define _mm512_packs_epi32 ga_emulated::packs_epi32
#define _mm512_unpacklo_epi8 ga_emulated::unpacklo_epi8
#define _mm512_unpackhi_epi8 ga_emulated::unpackhi_epi8
#define _mm512_unpacklo_epi16 ga_emulated::unpacklo_epi16
#define _mm512_unpackhi_epi16 ga_emulated::unpackhi_epi16
#define _mm512_unpacklo_epi32 ga_emulated::unpacklo_epi32
#define _mm512_unpackhi_epi32 ga_emulated::unpackhi_epi32
#define _mm512_unpacklo_epi64 ga_emulated::unpacklo_epi64
#define _mm512_unpackhi_epi64 ga_emulated::unpackhi_epi64

#define _mm512_and_si512(a, b) ((__m512i)(a) & (__m512i)(b))
#define _mm512_andnot_si512(a, b) (~(__m512i)(a) & (__m512i)(b))
#define _mm512_or_si512(a, b) ((__m512i)(a) | (__m512i)(b))
#define _mm512_xor_si512(a, b) ((__m512i)(a) ^ (__m512i)(b))
#define GA_LANES(type, a, op, b) ((__m512i)((ga_emulated::type)(a) op (ga_emulated::type)(b)))
#define _mm512_add_epi8(a, b) GA_LANES(U8, a, +, b)
#define _mm512_sub_epi8(a, b) GA_LANES(U8, a, -, b)
#define _mm512_add_epi16(a, b) GA_LANES(U16, a, +, b)
#define _mm512_sub_epi16(a, b) GA_LANES(U16, a, -, b)
#define _mm512_mullo_epi16(a, b) GA_LANES(U16, a, *, b)
#define _mm512_add_epi32(a, b) GA_LANES(U32, a, +, b)
#define _mm512_sub_epi32(a, b) GA_LANES(U32, a, -, b)
#define _mm512_mullo_epi32(a, b) GA_LANES(U32, a, *, b)
#define GA_SHIFT(type, a, op, n) ((__m512i)((ga_emulated::type)(a) op (n)))
#define _mm512_slli_epi16(a, n) GA_SHIFT(U16, a, <<, n)
#define _mm512_srli_epi16(a, n) GA_SHIFT(U16, a, >>, n)
#define _mm512_srai_epi16(a, n) GA_SHIFT(I16, a, >>, n)
#define _mm512_slli_epi32(a, n) GA_SHIFT(U32, a, <<, n)
#define _mm512_srli_epi32(a, n) GA_SHIFT(U32, a, >>, n)
#define _mm512_srai_epi32(a, n) GA_SHIFT(I32, a, >>, n)
#define _mm512_slli_epi64(a, n) GA_SHIFT(U64, a, <<, n)
#define _mm512_srli_epi64(a, n) GA_SHIFT(U64, a, >>, n)
#define _mm512_permutexvar_epi8(which, a) ga_emulated::permute_lanes<ga_emulated::U8>(which, a)
#define _mm512_permutexvar_epi16(which, a) ga_emulated::permute_lanes<ga_emulated::U16>(which, a)
#define _mm512_permutexvar_epi32(which, a) ga_emulated::permute_lanes<ga_emulated::U32>(which, a)
#define _mm512_permutexvar_ps(which, a) ((__m512)ga_emulated::permute_lanes<ga_emulated::U32>(which, (__m512i)(a)))

#define _mm512_dpbf16_ps(sum, a, b) ga_emulated::dpbf16_ps(sum, a, b)
#define _mm512_dpwssd_epi32(sum, a, b) ga_emulated::dpwssd_epi32(sum, a, b)
#define _mm512_dpbusd_epi32(sum, a, b) ga_emulated::dpbusd_epi32(sum, a, b)
#define _mm512_roundscale_ps(a, how) ga_emulated::roundscale_ps<how>(a)
#define _mm512_roundscale_pd(a, how) ga_emulated::roundscale_pd<how>(a)
#define _mm512_scalef_ps(a, b) ga_emulated::scalef<__m512>(a, b)
#define _mm512_scalef_pd(a, b) ga_emulated::scalef<__m512d>(a, b)
#define _mm512_cmp_ps_mask(a, b, how) static_cast<__mmask16>(ga_emulated::cmp_ps_mask<how>(a, b))
#define _mm512_permute_ps(a, how) ga_emulated::permute_ps<how>(a)
#define _mm512_reduce_add_ps(a) ga_emulated::reduce_add_ps(a)
#define _mm512_reduce_add_pd(a) ga_emulated::reduce_add_pd(a)
#define _mm512_reduce_max_ps(a) ga_emulated::reduce_max_ps(a)
#define _mm512_reduce_add_epi32(a) ga_emulated::reduce_add_epi32(a)
#define _mm512_reduce_max_epu32(a) ga_emulated::reduce_max<ga_emulated::U32>((ga_emulated::U32)(a))
