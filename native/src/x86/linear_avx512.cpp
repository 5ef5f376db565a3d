// Products with packed matrices for AVX-512 with VNNI and BF16.
#include "x86/linear_avx512.h"

#include "magnitude.h"
#include "x86/simd_avx512.h"

namespace ga {
namespace {

using F = __m512;

inline __m512i broadcast4(const void* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}

inline F half16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

// A tile of R rows and P panels: y = sums + bias.
template <int R, int P>
inline void store(const ga_matrix& w, const Block& b, int64_t row, int64_t panel, const F (&sums)[R][P]) {
    for (int p = 0; p < P; ++p) {
        const int64_t at = panel + p;
        const __mmask16 columns = Avx512::mask(panel_width(w, at));
        const F bias = w.bias ? _mm512_maskz_loadu_ps(columns, w.bias + at * kPanelRows) : _mm512_setzero_ps();
        for (int r = 0; r < R; ++r)
            _mm512_mask_storeu_ps(b.y + (row + r) * b.y_stride + at * kPanelRows, columns,
                                  _mm512_add_ps(sums[r][p], bias));
    }
}

// One unit of weights per step, added to float sums at once: float32 and bfloat16.
template <class Step>
struct Direct {
    static constexpr int kRows = 6, kPanels = 4;
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[R][P];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[r][p] = _mm512_setzero_ps();
        }
        const int64_t steps = a.padded / Step::kColumns;
        for (int64_t k = 0; k < steps; ++k) {
            F unit[P];
            for (int p = 0; p < P; ++p) unit[p] = _mm512_load_ps(panels[p] + k * kUnit);
            for (int r = 0; r < R; ++r) {
                const F value = Step::broadcast(a, row + r, k);
                for (int p = 0; p < P; ++p) sums[r][p] = Step::add(sums[r][p], value, unit[p]);
            }
        }
        store<R, P>(w, b, row, panel, sums);
    }
};

struct Float32Step {
    static constexpr int64_t kColumns = 1;
    static inline F broadcast(const Activations& a, int64_t row, int64_t k) {
        return _mm512_set1_ps(a.plain[row * a.stride + k]);
    }
    static inline F add(F sum, F value, F unit) { return _mm512_fmadd_ps(value, unit, sum); }
};

struct Bfloat16Step {
    static constexpr int64_t kColumns = 2;
    static inline F broadcast(const Activations& a, int64_t row, int64_t k) {
        return _mm512_castsi512_ps(broadcast4(a.bfloat16 + row * a.padded + 2 * k));
    }
    static inline F add(F sum, F value, F unit) { return _mm512_dpbf16_ps(sum, (__m512bh)value, (__m512bh)unit); }
};

using Float32 = Direct<Float32Step>;
using Bfloat16 = Direct<Bfloat16Step>;

struct Int8 {
    static constexpr int kRows = 6, kPanels = 2;
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[R][P];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[r][p] = _mm512_setzero_ps();
        }
        const int8_t* x = a.quants + row * a.padded;
        for (int64_t g = 0; g < a.groups; ++g, x += kGroup) {
            __m512i dots[R][P];
            for (int r = 0; r < R; ++r)  // weights are stored as w + 128
                for (int p = 0; p < P; ++p) dots[r][p] = _mm512_set1_epi32(-128 * a.sums[(row + r) * a.groups + g]);
            for (int j = 0; j < 8; ++j) {
                __m512i unit[P];
                for (int p = 0; p < P; ++p) unit[p] = _mm512_load_si512(int8_units(panels[p], g) + j * kUnit);
                for (int r = 0; r < R; ++r) {
                    const __m512i value = broadcast4(x + r * a.padded + 4 * j);
                    for (int p = 0; p < P; ++p) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], unit[p], value);
                }
            }
            for (int p = 0; p < P; ++p) {
                const F d = half16(int8_scales(panels[p], g));
                for (int r = 0; r < R; ++r) {
                    const F scale = _mm512_set1_ps(a.scales[(row + r) * a.groups + g]);
                    sums[r][p] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots[r][p]), scale), d, sums[r][p]);
                }
            }
        }
        store<R, P>(w, b, row, panel, sums);
    }
};

struct Int4 {
    // With few rows the weights come from memory, one panel after the other, and the processor's own guess does not reach
    // far enough. Measured with 8 rows on Zen 4: 289 -> 568 billion operations per second. It slows the other kinds, whose
    // several panels are streams enough.
    static constexpr int64_t kAhead = 2560;
    static constexpr int kRows = 8, kPanels = 1;
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[R][1];
        for (int r = 0; r < R; ++r) sums[r][0] = _mm512_setzero_ps();
        const char* group = panel_at(w, panel);
        const __m512i low = _mm512_set1_epi8(15);
        const int8_t* x = a.quants + row * a.padded;
        const float* scales = a.scales + row * a.groups;
        const float* offsets = a.offsets + row * a.groups;
        for (int64_t g = 0; g < a.groups; ++g, group += kInt4GroupBytes, x += kGroup) {
            __m512i quants[8];
            for (int j = 0; j < 4; ++j) {
                const __m512i both = _mm512_load_si512(group + j * kUnit);
                quants[j] = _mm512_and_si512(both, low);
                quants[4 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            }
            const F d = half16(group + 256), m = half16(group + 288);
            for (int j = 0; j < 5; ++j) Avx512::prefetch(group + j * kUnit + kAhead);
            for (int r = 0; r < R; ++r) {
                // Two integer sums keep one row busy; integers do not mind the order.
                __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
                for (int j = 0; j < 8; j += 2) {
                    even = _mm512_dpbusd_epi32(even, quants[j], broadcast4(x + r * a.padded + 4 * j));
                    odd = _mm512_dpbusd_epi32(odd, quants[j + 1], broadcast4(x + r * a.padded + 4 * j + 4));
                }
                const F scale = _mm512_set1_ps(scales[r * a.groups + g]);
                const F offset = _mm512_set1_ps(offsets[r * a.groups + g]);
                const F dot = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scale);
                sums[r][0] = _mm512_fmadd_ps(offset, m, _mm512_fmadd_ps(dot, d, sums[r][0]));
            }
        }
        store<R, 1>(w, b, row, panel, sums);
    }
};

// R rows, from the kind's most down to one.
template <class K, int P, int R = K::kRows>
inline void rows_of_tile(int rows, const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
    if constexpr (R == 1) {
        K::template tile<1, P>(w, a, b, row, panel);
    } else {
        if (rows == R)
            K::template tile<R, P>(w, a, b, row, panel);
        else
            rows_of_tile<K, P, R - 1>(rows, w, a, b, row, panel);
    }
}

template <class K, int P>
inline void panels_of_tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t panel) {
    for (int64_t row = b.row_begin; row < b.row_end; row += K::kRows) {
        const int64_t left = b.row_end - row;
        rows_of_tile<K, P>(left < K::kRows ? static_cast<int>(left) : K::kRows, w, a, b, row, panel);
    }
}

template <class K>
void product(const ga_matrix& w, const Activations& a, const Block& b) {
    int64_t panel = b.panel_begin;
    for (; panel + K::kPanels <= b.panel_end; panel += K::kPanels) panels_of_tile<K, K::kPanels>(w, a, b, panel);
    for (; panel < b.panel_end; ++panel) panels_of_tile<K, 1>(w, a, b, panel);
}

// Integer sums for `integers`: R rows of x times one panel. Weights are stored as w + 128 or w + 8.
template <int64_t kind, int R>
inline void sums_tile(const ga_matrix& w, const Activations& a, const SumBlock& s, int64_t row, int64_t p) {
    const char* panel = panel_at(w, s.panel + p);
    const int8_t* x = a.quants + row * a.padded;
    __m512i dots[R];
    for (int r = 0; r < R; ++r) {
        const int32_t sum = a.sums[(row + r) * a.groups + s.group];
        dots[r] = _mm512_set1_epi32((kind == kInt8 ? -128 : -8) * sum);
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t k = s.col_begin; k < s.col_end; k += kGroup) {
        __m512i units[8];
        for (int j = 0; j < (kind == kInt8 ? 8 : 4); ++j) {
            if constexpr (kind == kInt8) {
                units[j] = _mm512_load_si512(int8_units(panel, k / kGroup) + j * kUnit);
            } else {
                const __m512i both = _mm512_load_si512(panel + k / kGroup * kInt4GroupBytes + j * kUnit);
                units[j] = _mm512_and_si512(both, low);
                units[4 + j] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < 8; ++j)
                dots[r] = _mm512_dpbusd_epi32(dots[r], units[j], broadcast4(x + r * a.padded + k + 4 * j));
    }
    int32_t* out = s.sums + ((row - s.row_begin) * s.panels + p) * kPanelRows;
    for (int r = 0; r < R; ++r) _mm512_storeu_si512(out + r * s.panels * kPanelRows, dots[r]);
}

template <int64_t kind, int R>
inline void sums_rows(int rows, const ga_matrix& w, const Activations& a, const SumBlock& s, int64_t row, int64_t p) {
    if constexpr (R == 1) {
        sums_tile<kind, 1>(w, a, s, row, p);
    } else {
        if (rows == R)
            sums_tile<kind, R>(w, a, s, row, p);
        else
            sums_rows<kind, R - 1>(rows, w, a, s, row, p);
    }
}

template <int64_t kind>
inline void integer_sums(const ga_matrix& w, const Activations& a, const SumBlock& s) {
    for (int64_t p = 0; p < s.panels; ++p)
        for (int64_t row = s.row_begin; row < s.row_end; row += 8)
            sums_rows<kind, 8>(static_cast<int>(s.row_end - row < 8 ? s.row_end - row : 8), w, a, s, row, p);
}

inline F largest_bits(F largest, F x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(largest), magnitude));
}

void quantise(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
              float* offsets) {
    for (int64_t begin = 0; begin < padded; begin += kGroup, ++scales, ++sums, ++offsets) {
        const int64_t end = begin + kGroup;
        const auto values = [&](int64_t k) {
            const int64_t left = cols - k;
            return left <= 0 ? _mm512_setzero_ps() : Avx512::load_n(x + k, left < 16 ? static_cast<int>(left) : 16);
        };
        F largest16 = _mm512_setzero_ps();
        for (int64_t k = begin; k < end; k += 16) largest16 = largest_bits(largest16, values(k));
        const float largest = bits_to_float(_mm512_reduce_max_epu32(_mm512_castps_si512(largest16)));
        const bool usable = largest > kTiny && largest <= kLargest;  // NaN and infinity go on through the scale
        const F inverse = _mm512_set1_ps(usable ? 127.0f / largest : 0.0f);
        *scales = largest > kTiny || largest != largest ? largest / 127.0f : 0.0f;
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = begin; k < end; k += 16) {
            const __m512i whole = usable ? _mm512_cvtps_epi32(_mm512_mul_ps(values(k), inverse)) : _mm512_setzero_si512();
            sum = _mm512_add_epi32(sum, whole);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(quants + k), _mm512_cvtepi32_epi8(whole));
        }
        *sums = _mm512_reduce_add_epi32(sum);
        *offsets = *scales * static_cast<float>(*sums);
    }
}

}  // namespace

void product_float32_avx512(const ga_matrix& w, const Activations& a, const Block& b) { product<Float32>(w, a, b); }
void sums_int4_avx512(const ga_matrix& w, const Activations& a, const SumBlock& s) { integer_sums<kInt4>(w, a, s); }

void to_bfloat16_avx512(const float* x, int64_t cols, int64_t padded, uint16_t* out) {
    for (int64_t k = 0; k < padded; k += 16) {
        const int left = cols - k < 16 ? static_cast<int>(cols - k < 0 ? 0 : cols - k) : 16;
        const __m256bh rounded = _mm512_cvtneps_pbh(Avx512::load_n(x + (left ? k : 0), left));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k), (__m256i)rounded);
    }
}

const LinearKernels linear_avx512 = {
    "avx512",
    {product_float32_avx512, product<Bfloat16>, product<Int8>, product<Int4>},
    {Form::kFloat32, Form::kBfloat16, Form::kBytes, Form::kBytes},
    to_bfloat16_avx512,
    quantise,
    {integer_sums<kInt8>, sums_int4_avx512},
};

}  // namespace ga
