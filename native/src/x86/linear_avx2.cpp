// Products with packed matrices for AVX2 with FMA and F16C.
#include <utility>

#include "linear_kernels.h"
#include "magnitude.h"
#include "x86/simd_avx2.h"

namespace ga {
namespace {

using F = __m256;
using I = __m256i;

// With few rows the weights come from memory, and the processor's own guess does not reach far enough. Measured on
// Zen 3 with one row: int8 from 45 to 60 billion operations per second, int4 from 95 to 110; many rows lose nothing.
constexpr int64_t kAhead = 2560;
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

// A tile of R rows and P panels, each of two registers: y = sums + bias.
template <int R, int P>
inline void store(const ga_matrix& w, const Block& b, int64_t row, int64_t panel, const F (&sums)[P][R][2]) {
    for (int p = 0; p < P; ++p) {
        const int width = panel_width(w, panel + p);
        const int64_t at = (panel + p) * kPanelRows;
        const Avx2::F bias = w.bias ? Avx2::load_n(w.bias + at, width) : Avx2::zero();
        for (int r = 0; r < R; ++r)
            Avx2::store_n(b.y + (row + r) * b.y_stride + at, Avx2::add({sums[p][r][0], sums[p][r][1]}, bias), width);
    }
}

// Products of floats, one column after the other: float32, and bfloat16 as float32.
template <class Step>
struct Direct {
    static constexpr int kRows = 6;  // 6 rows x 2 registers of sums, 2 of weights, 1 of x: 15 of 16
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[P][R][2];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = _mm256_setzero_ps();
        }
        const int64_t stride = Step::stride(a), units = a.padded / Step::kColumns;
        const float* x = Step::x(a) + row * stride;
        for (int64_t k = 0; k < units; ++k, x += Step::kColumns)
            for (int c = 0; c < Step::kColumns; ++c)
                each<P>([&](int p) __attribute__((always_inline)) {
                    if (c == 0) Avx2::prefetch(panels[p] + k * kUnit + kAhead);
                    const F low = Step::weights(panels[p] + k * kUnit, c);
                    const F high = Step::weights(panels[p] + k * kUnit + kHalf, c);
                    for (int r = 0; r < R; ++r) {
                        const F value = _mm256_broadcast_ss(x + r * stride + c);
                        sums[p][r][0] = settled(_mm256_fmadd_ps(value, low, sums[p][r][0]));
                        sums[p][r][1] = settled(_mm256_fmadd_ps(value, high, sums[p][r][1]));
                    }
                });
        store<R, P>(w, b, row, panel, sums);
    }
};

struct Float32Step {
    static constexpr int kColumns = 1;
    static inline const float* x(const Activations& a) { return a.plain; }
    static inline int64_t stride(const Activations& a) { return a.stride; }
    static inline F weights(const char* half, int) { return _mm256_load_ps(reinterpret_cast<const float*>(half)); }
};

struct Bfloat16Step {
    static constexpr int kColumns = 2;
    static inline const float* x(const Activations& a) { return a.rounded; }
    static inline int64_t stride(const Activations& a) { return a.padded; }
    static inline F weights(const char* half, int c) { return c == 0 ? Avx2::even8(half) : Avx2::odd8(half); }
};

using Float32 = Direct<Float32Step>;
using Bfloat16 = Direct<Bfloat16Step>;

// Products of bytes, group by group: a kind's `dot` gives the integers of one group and panel, and its `add` turns
// them into floats.
template <class Kind>
struct Grouped {
    static constexpr int kRows = 4;  // 4 rows x 2 registers of sums, up to 4 of weights, 1 of x, 2 for steps: 15
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[P][R][2];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = _mm256_setzero_ps();
        }
        for (int64_t g = 0; g < a.groups; ++g)
            for (int p = 0; p < P; ++p) {
                for (int line = 0; line < Kind::kLines; ++line)
                    Avx2::prefetch(Kind::units(panels[p], g) + kAhead + line * kUnit);
                I dots[R][2];
                for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
                Kind::dot(panels[p], g, a.quants + row * a.padded + g * kGroup, a.padded, dots);
                Kind::add(panels[p], g, a, row * a.groups + g, dots, sums[p]);
            }
        store<R, P>(w, b, row, panel, sums);
    }
};

struct Int8Kind {
    static constexpr int kLines = 9;
    static inline const char* units(const char* panel, int64_t g) { return int8_units(panel, g); }
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

using Int8 = Grouped<Int8Kind>;
using Int4 = Grouped<Int4Kind>;

// R rows, from the kind's most down to one.
template <class K, int P, int R>
inline void rows_of_tile(int rows, const ga_matrix& w, const Activations& a, const Block& b, int64_t row,
                         int64_t panel) {
    if constexpr (R == 1) {
        K::template tile<1, P>(w, a, b, row, panel);
    } else {
        if (rows == R)
            K::template tile<R, P>(w, a, b, row, panel);
        else
            rows_of_tile<K, P, R - 1>(rows, w, a, b, row, panel);
    }
}

// Few rows take several panels at once, to keep enough sums in flight and enough streams from memory.
template <class K>
void product(const ga_matrix& w, const Activations& a, const Block& b) {
    const int64_t rows = b.row_end - b.row_begin;
    int64_t panel = b.panel_begin;
    if (rows == 1)
        for (; panel + 4 <= b.panel_end; panel += 4) K::template tile<1, 4>(w, a, b, b.row_begin, panel);
    if (rows <= 3)
        for (; panel + 2 <= b.panel_end; panel += 2)
            rows_of_tile<K, 2, 3>(static_cast<int>(rows), w, a, b, b.row_begin, panel);
    for (; panel < b.panel_end; ++panel)
        for (int64_t row = b.row_begin, next; row < b.row_end; row = next) {
            // Tiles of nearly one height: a tile of one or two rows has too few sums in flight.
            const int64_t left = b.row_end - row, tiles = (left + K::kRows - 1) / K::kRows;
            next = row + (left + tiles - 1) / tiles;
            rows_of_tile<K, 1, K::kRows>(static_cast<int>(next - row), w, a, b, row, panel);
        }
}

// Integer sums for `integers`. Bytes widened to 16 bits multiply exactly whatever they are; a static scheme has -128,
// which the signs above cannot have. A register of products holds four rows of w, each in two halves.
template <int R>
inline void sums_int8_tile(const char* panel, const int8_t* x, int64_t stride, const SumBlock& s, const int32_t* excess,
                           int64_t groups, int32_t* out, int64_t out_stride) {
    I dots[R][4];
    for (int r = 0; r < R; ++r)
        for (int q = 0; q < 4; ++q) dots[r][q] = _mm256_setzero_si256();
    for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
        const char* units = int8_units(panel, k / kGroup);
        for (int line = 0; line < 8; ++line) Avx2::prefetch(units + kAhead + line * kUnit);
        for (int j = 0; j < 8; ++j) {
            I value[R];
            for (int r = 0; r < R; ++r) {
                int32_t four;
                memcpy(&four, x + r * stride + k + 4 * j, 4);
                value[r] = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
            }
            for (int q = 0; q < 4; ++q) {
                const auto* bytes = reinterpret_cast<const __m128i*>(units + j * kUnit + q * 16);
                const I weights = _mm256_cvtepu8_epi16(_mm_load_si128(bytes));
                for (int r = 0; r < R; ++r)
                    dots[r][q] = _mm256_add_epi32(dots[r][q], _mm256_madd_epi16(weights, value[r]));
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        const I stored = _mm256_set1_epi32(128 * excess[r * groups]);  // weights are stored as w + 128
        for (int h = 0; h < 2; ++h) {
            const I pairs = _mm256_hadd_epi32(dots[r][2 * h], dots[r][2 * h + 1]);
            const I ordered = _mm256_permute4x64_epi64(pairs, 0xD8);
            _mm256_storeu_si256(reinterpret_cast<I*>(out + r * out_stride + h * 8), _mm256_sub_epi32(ordered, stored));
        }
    }
}

template <int R>
inline void sums_int4_tile(const char* panel, const int8_t* x, int64_t stride, const SumBlock& s, const int32_t* excess,
                           int64_t groups, int32_t* out, int64_t out_stride) {
    const I ones = _mm256_set1_epi16(1);
    I sums[R][2];
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
        for (int line = 0; line < Int4Kind::kLines; ++line)
            Avx2::prefetch(Int4Kind::units(panel, k / kGroup) + kAhead + line * kUnit);
        I dots[R][2];
        for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
        Int4Kind::dot(panel, k / kGroup, x + k, stride, dots);  // at most 16 * 15 * 128: it fits 16 bits
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h)
                sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(dots[r][h], ones));
    }
    for (int r = 0; r < R; ++r)
        for (int h = 0; h < 2; ++h) {
            const I stored = _mm256_set1_epi32(8 * excess[r * groups]);  // weights are stored as w + 8
            _mm256_storeu_si256(reinterpret_cast<I*>(out + r * out_stride + h * 8), _mm256_sub_epi32(sums[r][h], stored));
        }
}

template <int64_t kind, int R>
inline void sums_tile(const ga_matrix& w, const Activations& a, const SumBlock& s, int64_t row, int64_t p) {
    const char* panel = panel_at(w, s.panel + p);
    const int8_t* x = a.quants + row * a.padded;
    const int32_t* excess = a.sums + row * a.groups + s.group;
    const int64_t out_stride = s.panels * kPanelRows;
    int32_t* out = s.sums + (row - s.row_begin) * out_stride + p * kPanelRows;
    if constexpr (kind == kInt8)
        sums_int8_tile<R>(panel, x, a.padded, s, excess, a.groups, out, out_stride);
    else
        sums_int4_tile<R>(panel, x, a.padded, s, excess, a.groups, out, out_stride);
}

template <int64_t kind>
void integer_sums(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    for (int64_t p = 0; p < s.panels; ++p) {
        int64_t row = s.row_begin;
        for (; row + 2 <= s.row_end; row += 2) sums_tile<kind, 2>(w, a, s, row, p);
        if (row < s.row_end) sums_tile<kind, 1>(w, a, s, row, p);
    }
}

// Round to nearest even; NaN stays NaN.
inline F round_to_bfloat16(F x) {
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const I quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const F rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet),
                                       _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}

// Sixteen columns from k on; those past the end are 0.
inline Avx2::F columns(const float* x, int64_t cols, int64_t k) {
    const int64_t left = cols - k;
    return left <= 0 ? Avx2::zero() : Avx2::load_n(x + k, left < 16 ? static_cast<int>(left) : 16);
}

void round_row(const float* x, int64_t cols, int64_t padded, float* out) {
    for (int64_t k = 0; k < padded; k += 16) {
        const Avx2::F values = columns(x, cols, k);
        Avx2::store(out + k, {round_to_bfloat16(values.low), round_to_bfloat16(values.high)});
    }
}

inline uint32_t largest_bits(const F (&x)[4]) {
    const I all_but_sign = _mm256_set1_epi32(0x7FFFFFFF);
    I largest = _mm256_setzero_si256();
    for (const F& values : x)
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(values), all_but_sign));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4E));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xB1))));
}

inline int32_t add_lanes(I eight) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

void quantise(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
              float* offsets) {
    for (int64_t begin = 0; begin < padded; begin += kGroup, ++scales, ++sums, ++offsets) {
        const Avx2::F first = columns(x, cols, begin), second = columns(x, cols, begin + 16);
        const F values[4] = {first.low, first.high, second.low, second.high};
        const float largest = bits_to_float(largest_bits(values));
        const bool usable = largest > kTiny && largest <= kLargest;  // NaN and infinity go on through the scale
        const F inverse = _mm256_set1_ps(usable ? 127.0f / largest : 0.0f);
        *scales = largest > kTiny || largest != largest ? largest / 127.0f : 0.0f;
        I whole[4];
        for (int v = 0; v < 4; ++v)
            whole[v] = usable ? _mm256_cvtps_epi32(_mm256_mul_ps(values[v], inverse)) : _mm256_setzero_si256();
        // Packing works within halves of a register; the last step puts the fours in order.
        const I bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<I*>(quants + begin), _mm256_permutevar8x32_epi32(bytes, order));
        *sums = add_lanes(_mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]), _mm256_add_epi32(whole[2], whole[3])));
        *offsets = *scales * static_cast<float>(*sums);
    }
}

}  // namespace

const LinearKernels linear_avx2 = {
    "avx2", {product<Float32>, product<Bfloat16>, product<Int8>, product<Int4>}, nullptr, quantise,
    {integer_sums<kInt8>, integer_sums<kInt4>}, round_row};

}  // namespace ga
