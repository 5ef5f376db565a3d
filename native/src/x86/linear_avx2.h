// Products of bytes for AVX2, shared by those with a scale per group and those of a checkpoint's own integers.
#pragma once
#include <string.h>

#include <utility>

#include "linear_kernels.h"
#include "x86/simd_avx2.h"

namespace ga {

void sums_int8_avx2(const ga_matrix& w, const Activations& a, const SumBlock& b);
void sums_int4_avx2(const ga_matrix& w, const Activations& a, const SumBlock& b);

namespace {

using F = __m256;
using I = __m256i;

// With few rows the weights come from memory, and the processor's own guess does not reach far enough. What is asked for
// too early fills the buffers that loads wait for, so each of several panels at once is fetched less far ahead. Measured
// on one Zen 3 core, one row times four panels, 2560 and 640 bytes ahead, as shares of the read limit in several runs:
// int4 76 and 82 %, int8 79 and 87 %, bfloat16 86 and 94 %.
constexpr int64_t kAhead = 2560;
constexpr int64_t kAheadOfEach = 640;
constexpr int64_t kHalf = kUnit / 2;  // bytes of a unit that belong to eight rows: one register

inline I load(const void* p) { return _mm256_load_si256(static_cast<const I*>(p)); }

inline I broadcast4(const void* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}

inline F half8(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

// The value is computed here, before what follows: with sixteen registers there is no room for a compiler that first
// computes the products of all rows and then adds them.
template <class V>
inline V settled(V value) {
    asm volatile("" : "+x"(value));
    return value;
}

// body(0), body(1), …: indices that are constants keep what they index in registers.
template <int... N, class Body>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, N...>, const Body& body) {
    (body(N), ...);
}
template <int count, class Body>
[[gnu::always_inline]] inline void each(const Body& body) {
    each(std::make_integer_sequence<int, count>(), body);
}

// Fetches line j of `lines`; the last of `steps` steps takes all that are left.
[[gnu::always_inline]] inline void fetch_line(const char* from, int j, int lines, int steps) {
    for (int line = j; line < (j + 1 < steps ? j + 1 : lines); ++line) Avx2::prefetch(from + line * kUnit);
}

struct Int8Kind {
    static constexpr int kLines = 9;
    static inline const char* units(const char* panel, int64_t g) { return int8_units(panel, g); }
    // One row times P panels: a four of x is loaded once for all. What comes `ahead` in each is fetched line by line
    // between the products, since many requests at once would make the loads wait.
    template <int P>
    [[gnu::always_inline]] static inline void dot_of_row(const char* const (&panels)[P], int64_t g, int64_t ahead,
                                                         const int8_t* x, I (&dots)[P][2]) {
        const I stored = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
        each<8>([&](int j) __attribute__((always_inline)) {
            const I value = broadcast4(x + 4 * j);
            each<P>([&](int p) __attribute__((always_inline)) {
                fetch_line(panels[p] + ahead, j, kLines, 8);
                each<2>([&](int h) __attribute__((always_inline)) {
                    const I w = _mm256_xor_si256(load(units(panels[p], g) + j * kUnit + h * kHalf), stored);
                    const I products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(value, w));
                    dots[p][h] = settled(_mm256_add_epi32(dots[p][h], _mm256_madd_epi16(products, ones)));
                });
            });
        });
    }
    // |w| * (x with the sign of w): two products of at most 128 * 127 fit 16 bits.
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* panel, int64_t g, const int8_t* x, int64_t stride,
                                                  I (&dots)[R][2]) {
        const I stored = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
        const char* from = units(panel, g);
        each<8>([&](int j) __attribute__((always_inline)) {
            const I low = _mm256_xor_si256(load(from + j * kUnit), stored), low_size = _mm256_abs_epi8(low);
            const I high = _mm256_xor_si256(load(from + j * kUnit + kHalf), stored), high_size = _mm256_abs_epi8(high);
            for (int r = 0; r < R; ++r) {
                const I value = broadcast4(x + r * stride + 4 * j);
                const I first = _mm256_maddubs_epi16(low_size, _mm256_sign_epi8(value, low));
                dots[r][0] = settled(_mm256_add_epi32(dots[r][0], _mm256_madd_epi16(first, ones)));
                const I second = _mm256_maddubs_epi16(high_size, _mm256_sign_epi8(value, high));
                dots[r][1] = settled(_mm256_add_epi32(dots[r][1], _mm256_madd_epi16(second, ones)));
            }
        });
    }

    template <int R>
    [[gnu::always_inline]] static inline void add(const char* panel, int64_t g, const Activations& a, int64_t at,
                                                  const I (&dots)[R][2], F (&sums)[R][2]) {
        for (int h = 0; h < 2; ++h) {
            const F d = half8(int8_scales(panel, g) + h * 16);
            for (int r = 0; r < R; ++r) {
                const F scale = _mm256_broadcast_ss(a.scales + at + r * a.groups);
                sums[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots[r][h]), scale), d, sums[r][h]);
            }
        }
    }
};

struct Int4Kind {
    static constexpr int kLines = 5;
    static inline const char* units(const char* panel, int64_t g) { return panel + g * kInt4GroupBytes; }
    // As that of int8; weights are loaded once for both their nibbles.
    template <int P>
    [[gnu::always_inline]] static inline void dot_of_row(const char* const (&panels)[P], int64_t g, int64_t ahead,
                                                         const int8_t* x, I (&dots)[P][2]) {
        const I nibble = _mm256_set1_epi8(15);
        each<4>([&](int j) __attribute__((always_inline)) {
            const I first = broadcast4(x + 4 * j), second = broadcast4(x + 16 + 4 * j);
            each<P>([&](int p) __attribute__((always_inline)) {
                fetch_line(panels[p] + ahead, j, kLines, 4);
                each<2>([&](int h) __attribute__((always_inline)) {
                    const I both = load(units(panels[p], g) + j * kUnit + h * kHalf);
                    const I low = _mm256_maddubs_epi16(_mm256_and_si256(both, nibble), first);
                    const I high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), second);
                    dots[p][h] = settled(_mm256_add_epi16(dots[p][h], _mm256_add_epi16(low, high)));
                });
            });
        });
    }
    // Sixteen products of at most 15 * 127 fit 16 bits: one widening at the end of a group is enough.
    template <int R>
    [[gnu::always_inline]] static inline void dot(const char* panel, int64_t g, const int8_t* x, int64_t stride,
                                                  I (&dots)[R][2]) {
        const I nibble = _mm256_set1_epi8(15);
        const char* from = units(panel, g);
        each<8>([&](int j) __attribute__((always_inline)) {
            const I left = load(from + j % 4 * kUnit), right = load(from + j % 4 * kUnit + kHalf);
            const I low = _mm256_and_si256(j < 4 ? left : _mm256_srli_epi16(left, 4), nibble);
            const I high = _mm256_and_si256(j < 4 ? right : _mm256_srli_epi16(right, 4), nibble);
            for (int r = 0; r < R; ++r) {
                const I value = broadcast4(x + r * stride + 4 * j);
                dots[r][0] = settled(_mm256_add_epi16(dots[r][0], _mm256_maddubs_epi16(low, value)));
                dots[r][1] = settled(_mm256_add_epi16(dots[r][1], _mm256_maddubs_epi16(high, value)));
            }
        });
    }

    template <int R>
    [[gnu::always_inline]] static inline void add(const char* panel, int64_t g, const Activations& a, int64_t at,
                                                  const I (&dots)[R][2], F (&sums)[R][2]) {
        const I ones = _mm256_set1_epi16(1);
        for (int h = 0; h < 2; ++h) {
            const char* line = units(panel, g) + 4 * kUnit + h * 16;
            const F d = half8(line), m = half8(line + 32);
            for (int r = 0; r < R; ++r) {
                const F scale = _mm256_broadcast_ss(a.scales + at + r * a.groups);
                const F offset = _mm256_broadcast_ss(a.offsets + at + r * a.groups);
                const F dot = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(dots[r][h], ones)), scale);
                sums[r][h] = _mm256_fmadd_ps(offset, m, _mm256_fmadd_ps(dot, d, sums[r][h]));
            }
        }
    }
};

}  // namespace
}  // namespace ga
