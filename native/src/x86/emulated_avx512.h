// AVX-512's intrinsics in software on AVX2, for the build that tests the levels avx512 and amx on any x86 machine.
//
// CMake's GALLIUM_EMULATE_LEVELS includes this file ahead of every source of these levels; no wheel is built with it.
// Each intrinsic that the kernels use becomes a macro for a function here, with the semantics of Intel's manual. One that
// is missing shows up as "inlining failed ... target specific option mismatch" with its name: add it below. Left out is
// only that the bfloat16 instructions take denormal numbers for zero.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi"

namespace ga_emulated {

#define GA_EMULATED static inline __attribute__((always_inline))

// Vectors of one element type; the compiler splits what is done to them into AVX2's halves.
typedef int8_t I8 __attribute__((vector_size(64), may_alias));
typedef uint8_t U8 __attribute__((vector_size(64), may_alias));
typedef int16_t I16 __attribute__((vector_size(64), may_alias));
typedef uint16_t U16 __attribute__((vector_size(64), may_alias));
typedef int32_t I32 __attribute__((vector_size(64), may_alias));
typedef uint32_t U32 __attribute__((vector_size(64), may_alias));
typedef int64_t I64 __attribute__((vector_size(64), may_alias));
typedef uint64_t U64 __attribute__((vector_size(64), may_alias));

// A register as two of AVX2's.
template <class Whole, class Half>
union Halves {
    Whole whole;
    Half half[2];
};
template <class Half, class Whole>
GA_EMULATED Half half_of(Whole a, int i) {
    Halves<Whole, Half> h;
    h.whole = a;
    return h.half[i];
}
template <class Whole, class Half>
GA_EMULATED Whole joined(Half low, Half high) {
    Halves<Whole, Half> h;
    h.half[0] = low;
    h.half[1] = high;
    return h.whole;
}
template <class Half, class Op, class Whole, class... More>
GA_EMULATED Whole by_halves(Op op, Whole a, More... more) {
    return joined<Whole, Half>(op(half_of<Half>(a, 0), half_of<Half>(more, 0)...),
                               op(half_of<Half>(a, 1), half_of<Half>(more, 1)...));
}
#define GA_HALVES_PS(f, ...) by_halves<__m256>([](auto... v) { return f(v...); }, __VA_ARGS__)
#define GA_HALVES_PD(f, ...) by_halves<__m256d>([](auto... v) { return f(v...); }, __VA_ARGS__)
#define GA_HALVES_SI(f, ...) by_halves<__m256i>([](auto... v) { return f(v...); }, __VA_ARGS__)

// Memory. Only lanes of the mask are touched.
template <class V>
GA_EMULATED V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
GA_EMULATED void store(void* p, V v) {
    memcpy(p, &v, sizeof v);
}
template <class Lane, class V>
GA_EMULATED V mask_load(V from, uint64_t mask, const void* p) {
    Lane lanes[sizeof(V) / sizeof(Lane)];
    store(lanes, from);
    for (unsigned i = 0; i < sizeof(V) / sizeof(Lane); ++i)
        if (mask >> i & 1) memcpy(lanes + i, static_cast<const char*>(p) + i * sizeof(Lane), sizeof(Lane));
    return load<V>(lanes);
}
template <class Lane, class V>
GA_EMULATED void mask_store(void* p, uint64_t mask, V v) {
    Lane lanes[sizeof(V) / sizeof(Lane)];
    store(lanes, v);
    for (unsigned i = 0; i < sizeof(V) / sizeof(Lane); ++i)
        if (mask >> i & 1) memcpy(static_cast<char*>(p) + i * sizeof(Lane), lanes + i, sizeof(Lane));
}
template <class Lane, class V>
GA_EMULATED V mask_mov(V from, uint64_t mask, V a) {
    return mask_load<Lane>(from, mask, &a);
}
template <class Lane, class V>
GA_EMULATED uint64_t sign_mask(V a) {
    Lane lanes[sizeof(V) / sizeof(Lane)];
    store(lanes, a);
    uint64_t mask = 0;
    for (unsigned i = 0; i < sizeof(V) / sizeof(Lane); ++i) mask |= static_cast<uint64_t>(lanes[i] < 0) << i;
    return mask;
}

// Constants.
GA_EMULATED __m512 set1_ps(float a) { return joined<__m512>(_mm256_set1_ps(a), _mm256_set1_ps(a)); }
GA_EMULATED __m512d set1_pd(double a) { return joined<__m512d>(_mm256_set1_pd(a), _mm256_set1_pd(a)); }
GA_EMULATED __m512i twice(__m256i a) { return joined<__m512i>(a, a); }
template <class... T>
GA_EMULATED __m512i setr_epi32(T... lanes) {
    return (__m512i)I32{lanes...};
}

// Conversions.
GA_EMULATED __m512 cvtepi32_ps(__m512i a) {
    return joined<__m512>(_mm256_cvtepi32_ps(half_of<__m256i>(a, 0)), _mm256_cvtepi32_ps(half_of<__m256i>(a, 1)));
}
GA_EMULATED __m512 cvtepu32_ps(__m512i a) {
    typedef float F __attribute__((vector_size(64), may_alias));
    return (__m512)__builtin_convertvector((U32)a, F);
}
// Saturated; packs works within halves of 128 bits.
GA_EMULATED __m256i cvtsepi32_epi16(__m512i a) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(half_of<__m256i>(a, 0), half_of<__m256i>(a, 1)), 0xD8);
}

GA_EMULATED __m512i cvtps_epi32(__m512 a) {
    return joined<__m512i>(_mm256_cvtps_epi32(half_of<__m256>(a, 0)), _mm256_cvtps_epi32(half_of<__m256>(a, 1)));
}
GA_EMULATED __m512 cvtph_ps(__m256i a) {
    return joined<__m512>(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
GA_EMULATED __m512d cvtps_pd(__m256 a) {
    return joined<__m512d>(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
template <class From, class To, class V, class R>
GA_EMULATED R lanes_to(V a) {  // lane by lane, cut off or extended
    constexpr unsigned n = sizeof(V) / sizeof(From);
    From from[n];
    To to[n];
    store(from, a);
    for (unsigned i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
    return load<R>(to);
}
GA_EMULATED uint16_t to_bfloat16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);
    return static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}
GA_EMULATED __m256bh cvtneps_pbh(__m512 a) {
    uint16_t to[16];
    for (int i = 0; i < 16; ++i) to[i] = to_bfloat16(a[i]);
    return load<__m256bh>(to);
}
GA_EMULATED __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
    return joined<__m512bh>(cvtneps_pbh(low), cvtneps_pbh(high));
}

// Pairs of bfloat16: the second product of a pair is added first.
GA_EMULATED __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    const U32 x = (U32)a, y = (U32)b;
    sum = GA_HALVES_PS(_mm256_fmadd_ps, (__m512)(x & 0xFFFF0000u), (__m512)(y & 0xFFFF0000u), sum);
    return GA_HALVES_PS(_mm256_fmadd_ps, (__m512)(x << 16), (__m512)(y << 16), sum);
}
// Four unsigned bytes of a times four signed bytes of b; no product or pair leaves 16 bits once they are widened.
GA_EMULATED __m512i dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    const auto half = [&](int i) {
        return _mm256_add_epi32(half_of<__m256i>(sum, i), _mm256_madd_epi16(half_of<__m256i>(a, i), half_of<__m256i>(b, i)));
    };
    return joined<__m512i>(half(0), half(1));
}

GA_EMULATED __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    const __m512i a_even = (__m512i)((U16)a & 0xFF), a_odd = (__m512i)((U16)a >> 8);
    const __m512i b_even = (__m512i)((I16)((U16)b << 8) >> 8), b_odd = (__m512i)((I16)b >> 8);
    const __m512i even = GA_HALVES_SI(_mm256_madd_epi16, a_even, b_even);
    const __m512i odd = GA_HALVES_SI(_mm256_madd_epi16, a_odd, b_odd);
    return (__m512i)((I32)sum + (I32)even + (I32)odd);
}

template <int how>
GA_EMULATED __m512 roundscale_ps(__m512 a) {
    static_assert(how >> 4 == 0, "to whole numbers only");
    return by_halves<__m256>([](__m256 v) { return _mm256_round_ps(v, how & 15); }, a);
}
template <int how>
GA_EMULATED __m512d roundscale_pd(__m512d a) {
    static_assert(how >> 4 == 0, "to whole numbers only");
    return by_halves<__m256d>([](__m256d v) { return _mm256_round_pd(v, how & 15); }, a);
}
template <class V>
GA_EMULATED V scalef(V a, V b) {  // a * 2^floor(b)
    for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); ++i) {
        const double power = floor(static_cast<double>(b[i]));
        if (power != power)
            a[i] = b[i];
        else
            a[i] = static_cast<decltype(a[i] + 0)>(
                ldexp(static_cast<double>(a[i]), static_cast<int>(power < -4000 ? -4000 : power > 4000 ? 4000 : power)));
    }
    return a;
}
template <int how>
GA_EMULATED uint64_t cmp_ps_mask(__m512 a, __m512 b) {
    const auto bits = [&](int i) {
        return static_cast<uint64_t>(
            _mm256_movemask_ps(_mm256_cmp_ps(half_of<__m256>(a, i), half_of<__m256>(b, i), how)));
    };
    return bits(0) | bits(1) << 8;
}
template <int how>
GA_EMULATED __m512 permute_ps(__m512 a) {
    return by_halves<__m256>([](__m256 v) { return _mm256_permute_ps(v, how); }, a);
}

// Reductions, halves first as GCC writes them out.
GA_EMULATED float reduce_add_ps(__m512 a) {
    const __m256 eight = _mm256_add_ps(half_of<__m256>(a, 1), half_of<__m256>(a, 0));
    const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return two[0] + two[1];
}
GA_EMULATED double reduce_add_pd(__m512d a) {
    const __m256d four = _mm256_add_pd(half_of<__m256d>(a, 1), half_of<__m256d>(a, 0));
    const __m128d two = _mm_add_pd(_mm256_extractf128_pd(four, 1), _mm256_castpd256_pd128(four));
    return two[0] + two[1];
}
GA_EMULATED float reduce_max_ps(__m512 a) {
    const __m256 eight = _mm256_max_ps(half_of<__m256>(a, 1), half_of<__m256>(a, 0));
    const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
GA_EMULATED int32_t reduce_add_epi32(__m512i a) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += ((U32)a)[i];
    return static_cast<int32_t>(sum);
}
template <class V>
GA_EMULATED auto reduce_max(V a) {
    auto most = a[0];
    for (unsigned i = 1; i < sizeof(V) / sizeof(a[0]); ++i) most = a[i] > most ? a[i] : most;
    return most;
}
// A lane of b says which lane of a.
template <class V>
GA_EMULATED __m512i permute_lanes(__m512i which, __m512i a) {
    return (__m512i)__builtin_shuffle((V)a, (V)which);
}

}  // namespace ga_emulated

#include "x86/emulated_avx512_names.h"
