// Products with packed matrices for AVX2 with FMA and F16C.
#include "x86/linear_avx2.h"

#include "magnitude.h"

namespace ga {
namespace {

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

// What is to come from memory, fetched while a tile computes: `lines` cache lines per step.
struct Fetch {
    const char* from;
    int64_t step;
    int lines;

    // `one_of` tiles read the panel. A single one fetches what it reads itself a little later; several have the time to
    // fetch the next panel together, each a part of it.
    static inline Fetch of(const ga_matrix& w, int64_t panel, int64_t steps, int tile, int one_of) {
        const char* at = panel_at(w, panel);
        const int64_t bytes = panel_bytes(w.cols, w.kind), step = bytes / (steps * one_of);
        const int lines = static_cast<int>((step + kUnit - 1) / kUnit);
        return {one_of == 1 ? at + kAhead : at + bytes + tile * (bytes / one_of), step, lines};
    }
    [[gnu::always_inline]] inline void go() {
        for (int line = 0; line < lines; ++line) Avx2::prefetch(from + line * kUnit);
        from += step;
    }
};

// Where several panels that pass at once are fetched: a little later in each, and at its end in the P-th after it,
// which takes its place.
template <int P>
struct Ahead {
    int64_t bytes;
    explicit Ahead(const ga_matrix& w) : bytes(panel_bytes(w.cols, w.kind)) {}
    [[gnu::always_inline]] inline int64_t of(int64_t at) const {
        return at + kAheadOfEach + (at + kAheadOfEach < bytes ? 0 : (P - 1) * bytes);
    }
};

// Products of floats, one column after the other: float32, and bfloat16 as float32.
template <class Step>
struct Direct {
    static constexpr int kRows = 6;  // 6 rows x 2 registers of sums, 2 of weights, 1 of x: 15 of 16
    static inline int64_t steps(const Activations& a) { return a.padded / Step::kColumns; }
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel,
                            Fetch fetch) {
        F sums[P][R][2];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = _mm256_setzero_ps();
        }
        const int64_t stride = Step::stride(a), units = a.padded / Step::kColumns;
        const float* x = Step::x(a) + row * stride;
        const Ahead<P> ahead(w);
        for (int64_t k = 0; k < units; ++k, x += Step::kColumns) {
            if (P == 1) fetch.go();
            for (int c = 0; c < Step::kColumns; ++c)
                each<P>([&](int p) __attribute__((always_inline)) {
                    if (P > 1 && c == 0) Avx2::prefetch(panels[p] + ahead.of(k * kUnit));
                    const F low = Step::weights(panels[p] + k * kUnit, c);
                    const F high = Step::weights(panels[p] + k * kUnit + kHalf, c);
                    for (int r = 0; r < R; ++r) {
                        const F value = _mm256_broadcast_ss(x + r * stride + c);
                        sums[p][r][0] = settled(_mm256_fmadd_ps(value, low, sums[p][r][0]));
                        sums[p][r][1] = settled(_mm256_fmadd_ps(value, high, sums[p][r][1]));
                    }
                });
        }
        store<R, P>(w, b, row, panel, sums);
    }

    template <int P>
    static inline void one_row(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        tile<1, P>(w, a, b, row, panel, {});
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
    static inline int64_t steps(const Activations& a) { return a.groups; }
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel,
                            Fetch fetch) {
        F sums[P][R][2];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = _mm256_setzero_ps();
        }
        const Ahead<P> ahead(w);
        for (int64_t g = 0; g < a.groups; ++g)
            for (int p = 0; p < P; ++p) {
                if (P == 1) fetch.go();
                const char* coming = panels[p] + ahead.of(Kind::units(panels[p], g) - panels[p]);
                for (int line = 0; P > 1 && line < Kind::kLines; ++line) Avx2::prefetch(coming + line * kUnit);
                I dots[R][2];
                for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
                Kind::dot(panels[p], g, a.quants + row * a.padded + g * kGroup, a.padded, dots);
                Kind::add(panels[p], g, a, row * a.groups + g, dots, sums[p]);
            }
        store<R, P>(w, b, row, panel, sums);
    }

    // One row: what all panels need of x is loaded once for them.
    template <int P>
    static inline void one_row(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        F sums[P][1][2];
        const char* panels[P];
        for (int p = 0; p < P; ++p) {
            panels[p] = panel_at(w, panel + p);
            sums[p][0][0] = sums[p][0][1] = _mm256_setzero_ps();
        }
        const Ahead<P> ahead(w);
        const int8_t* x = a.quants + row * a.padded;
        for (int64_t g = 0; g < a.groups; ++g, x += kGroup) {
            I dots[P][2] = {};
            Kind::dot_of_row(panels, g, ahead.of(Kind::units(panels[0], g) - panels[0]), x, dots);
            each<P>([&](int p) __attribute__((always_inline)) {
                const I one[1][2] = {{dots[p][0], dots[p][1]}};
                Kind::add(panels[p], g, a, row * a.groups + g, one, sums[p]);
            });
        }
        store<1, P>(w, b, row, panel, sums);
    }
};

using Int8 = Grouped<Int8Kind>;
using Int4 = Grouped<Int4Kind>;

// R rows, from the kind's most down to one.
template <class K, int P, int R>
inline void rows_of_tile(int rows, const ga_matrix& w, const Activations& a, const Block& b, int64_t row,
                         int64_t panel, const Fetch& fetch) {
    if constexpr (R == 1) {
        K::template tile<1, P>(w, a, b, row, panel, fetch);
    } else {
        if (rows == R)
            K::template tile<R, P>(w, a, b, row, panel, fetch);
        else
            rows_of_tile<K, P, R - 1>(rows, w, a, b, row, panel, fetch);
    }
}

// Few rows take several panels at once, to keep enough sums in flight and enough streams from memory.
template <class K>
void product(const ga_matrix& w, const Activations& a, const Block& b) {
    const int64_t rows = b.row_end - b.row_begin;
    int64_t panel = b.panel_begin;
    if (rows == 1) {
        for (; panel + 4 <= b.panel_end; panel += 4) K::template one_row<4>(w, a, b, b.row_begin, panel);
        for (; panel + 2 <= b.panel_end; panel += 2) K::template one_row<2>(w, a, b, b.row_begin, panel);
    } else if (rows <= 3) {
        for (; panel + 2 <= b.panel_end; panel += 2)
            rows_of_tile<K, 2, 3>(static_cast<int>(rows), w, a, b, b.row_begin, panel, {});
    }
    const int64_t tiles = (rows + K::kRows - 1) / K::kRows;
    for (; panel < b.panel_end; ++panel)
        for (int64_t tile = 0, row = b.row_begin; tile < tiles; ++tile) {
            // Tiles of nearly one height: a tile of one or two rows has too few sums in flight.
            const int64_t height = (b.row_end - row + tiles - tile - 1) / (tiles - tile);
            const Fetch fetch = Fetch::of(w, panel, K::steps(a), static_cast<int>(tile), static_cast<int>(tiles));
            rows_of_tile<K, 1, K::kRows>(static_cast<int>(height), w, a, b, row, panel, fetch);
            row += height;
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
    "avx2",
    {product<Float32>, product<Bfloat16>, product<Int8>, product<Int4>},
    {Form::kFloat32, Form::kRounded, Form::kBytes, Form::kBytes},
    nullptr,
    quantise,
    {sums_int8_avx2, sums_int4_avx2},
    round_row};

}  // namespace ga
