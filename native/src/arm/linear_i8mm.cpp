// Products with packed matrices for arm64's matrix instructions: bfloat16 here, int8 and int4 in bytes_i8mm.h.
//
// bfloat16: two units [16 rows of w][2 columns], zipped, are eight blocks [2 rows][4 columns] for BFMMLA, whose four sums
// are [2 rows of x][2 rows of w]. One row of x takes BFDOT, two columns at a time. BFMMLA is defined as two BFDOTs in
// order, so the bits are the same. Both round each sum to odd and take denormal numbers for zero.
// Limit: 32 operations per BFMMLA, one zip for two of them with four rows of x; with one row, reading the weights.
#include "arm/bytes_i8mm.h"
#include "arm/linear_neon.h"

namespace ga {
namespace {

inline bfloat16x8_t pairs8(const void* p) { return vreinterpretq_bf16_u8(unsigned16(p)); }

// What four rows of x take of a panel: [pair of rows of x][pair of rows of w].
struct Bfloat16 {
    static constexpr int kRows = 4;  // 16 registers of sums, 4 of weights, 2 of x

    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        if constexpr (R == 1)
            single<P>(w, a, b, row, panel);
        else
            pairs<R, P>(w, a, b, row, panel);
    }

    template <int P>
    static inline void single(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        Neon::F sums[P][1];
        const char* panels[P];
        start<1, P>(w, panel, panels, sums);
        const uint16_t* x = a.bfloat16 + row * a.padded;
        for (int64_t k = 0; k < a.padded; k += 8) {
            const bfloat16x8_t values = pairs8(x + k);
            for (int p = 0; p < P; ++p) {
                const char* units = panels[p] + k / 2 * kUnit;
                each_lane([&](auto lane) __attribute__((always_inline)) {
                    Neon::prefetch(units + lane() * kUnit + kAhead);
                    for (int q = 0; q < kQuarters; ++q) {
                        float32x4_t& sum = sums[p][0].v[q];
                        sum = vbfdotq_laneq_f32(sum, pairs8(units + lane() * kUnit + q * 16), values, lane());
                    }
                });
            }
        }
        store<1, P>(w, b, row, panel, sums);
    }

    template <int R, int P>
    static inline void pairs(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        static_assert(P == 1, "several panels are for one row");
        constexpr int kPairs = (R + 1) / 2;
        float32x4_t squares[kPairs][kQuarters][2];
        for (auto& pair : squares)
            for (auto& quarter : pair) quarter[0] = quarter[1] = vdupq_n_f32(0.0f);
        const char* units = panel_at(w, panel);
        const auto* x = reinterpret_cast<const int8_t*>(a.bfloat16 + row * a.padded);
        const int64_t stride = 2 * a.padded;
        for (int64_t k = 0; k < a.padded; k += 4, units += 2 * kUnit, x += 8) {
            Neon::prefetch(units + kAhead);
            Neon::prefetch(units + kAhead + kUnit);
            bfloat16x8_t values[kPairs];
            for (int pair = 0; pair < kPairs; ++pair)
                values[pair] = vreinterpretq_bf16_s8(
                    two_rows(x + 2 * pair * stride, Squares<R>::partner(pair, stride)));
            for (int q = 0; q < kQuarters; ++q) {
                const Blocks blocks = zipped(unsigned16(units + q * 16), unsigned16(units + kUnit + q * 16));
                for (int pair = 0; pair < kPairs; ++pair) {
                    float32x4_t(&sums)[2] = squares[pair][q];
                    sums[0] = vbfmmlaq_f32(sums[0], values[pair], vreinterpretq_bf16_u8(blocks.first));
                    sums[1] = vbfmmlaq_f32(sums[1], values[pair], vreinterpretq_bf16_u8(blocks.second));
                }
            }
        }
        Neon::F sums[1][R];
        for (int r = 0; r < R; ++r)
            for (int q = 0; q < kQuarters; ++q) {
                const float64x2_t first = vreinterpretq_f64_f32(squares[r / 2][q][0]);
                const float64x2_t second = vreinterpretq_f64_f32(squares[r / 2][q][1]);
                const float64x2_t both = r % 2 ? vuzp2q_f64(first, second) : vuzp1q_f64(first, second);
                sums[0][r].v[q] = vreinterpretq_f32_f64(both);
            }
        store<R, 1>(w, b, row, panel, sums);
    }
};

}  // namespace

const LinearKernels linear_i8mm = {
    "i8mm",
    {product_float32_neon, product<Bfloat16>, product<Grouped<MatrixInt8>>, product<Grouped<MatrixInt4>>},
    {Form::kFloat32, Form::kBfloat16, Form::kBytes, Form::kBytes},
    to_bfloat16_neon,
    quantise_neon,
    {sums_int8_i8mm, sums_int4_i8mm}};

}  // namespace ga
