// Products with packed matrices for NEON, and what prepares activations for all levels of arm64.
//
// float32 and bfloat16 go column by column: a register of weights times one value of x, into one register of sums.
// Limit: 8 operations per FMLA; with one row of x, reading the weights. Bytes: bytes_neon.h.
#include "arm/linear_neon.h"

#include "arm/bytes_neon.h"
#include "magnitude.h"

namespace ga {
namespace {

// Products of floats: float32, and bfloat16 as float32.
template <class Step>
struct Direct {
    static constexpr int kRows = 6;  // 24 registers of sums, 4 of weights, 1 of x: 29 of 32
    template <int R, int P>
    static inline void tile(const ga_matrix& w, const Activations& a, const Block& b, int64_t row, int64_t panel) {
        Neon::F sums[P][R];
        const char* panels[P];
        start<R, P>(w, panel, panels, sums);
        const int64_t stride = Step::stride(a), units = a.padded / Step::kColumns;
        const float* x = Step::x(a) + row * stride;
        for (int64_t k = 0; k < units; ++k, x += Step::kColumns)
            for (int p = 0; p < P; ++p) {
                Neon::prefetch(panels[p] + k * kUnit + kAhead);
                for (int c = 0; c < Step::kColumns; ++c) {
                    const Neon::F weights = Step::weights(panels[p] + k * kUnit, c);
                    for (int r = 0; r < R; ++r) {
                        const float value = x[r * stride + c];
                        for (int q = 0; q < kQuarters; ++q)
                            sums[p][r].v[q] = vfmaq_n_f32(sums[p][r].v[q], weights.v[q], value);
                    }
                }
            }
        store<R, P>(w, b, row, panel, sums);
    }
};

struct Float32Step {
    static constexpr int kColumns = 1;
    static inline const float* x(const Activations& a) { return a.plain; }
    static inline int64_t stride(const Activations& a) { return a.stride; }
    static inline Neon::F weights(const char* unit, int) { return Neon::load(reinterpret_cast<const float*>(unit)); }
};

struct Bfloat16Step {
    static constexpr int kColumns = 2;
    static inline const float* x(const Activations& a) { return a.rounded; }
    static inline int64_t stride(const Activations& a) { return a.padded; }
    static inline Neon::F weights(const char* unit, int c) {
        return Neon::each([&](int q) {
            const uint32x4_t pairs = Neon::pairs4(unit + q * 16);
            return c == 0 ? Neon::even4(pairs) : Neon::odd4(pairs);
        });
    }
};

// The bits of bfloat16 in the upper half: round to nearest even; NaN stays NaN.
inline uint32x4_t rounded_bits(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    return vandq_u32(vbslq_u32(vceqq_f32(x, x), up, quiet), vdupq_n_u32(0xFFFF0000u));
}

// Sixteen columns from k on; those past the end are 0.
inline Neon::F columns(const float* x, int64_t cols, int64_t k) {
    const int64_t left = cols - k;
    return left <= 0 ? Neon::zero() : Neon::load_n(x + k, left < 16 ? static_cast<int>(left) : 16);
}

}  // namespace

void product_float32_neon(const ga_matrix& w, const Activations& a, const Block& b) {
    product<Direct<Float32Step>>(w, a, b);
}
void product_bfloat16_neon(const ga_matrix& w, const Activations& a, const Block& b) {
    product<Direct<Bfloat16Step>>(w, a, b);
}

void to_bfloat16_neon(const float* x, int64_t cols, int64_t padded, uint16_t* out) {
    for (int64_t k = 0; k < padded; k += 16) {
        const Neon::F values = columns(x, cols, k);
        for (int q = 0; q < kQuarters; ++q) vst1_u16(out + k + 4 * q, vshrn_n_u32(rounded_bits(values.v[q]), 16));
    }
}

void round_to_bfloat16_neon(const float* x, int64_t cols, int64_t padded, float* out) {
    for (int64_t k = 0; k < padded; k += 16) {
        const Neon::F values = columns(x, cols, k);
        Neon::store(out + k, Neon::each([&](int q) { return vreinterpretq_f32_u32(rounded_bits(values.v[q])); }));
    }
}

void quantise_neon(const float* x, int64_t cols, int64_t padded, int8_t* quants, float* scales, int32_t* sums,
                   float* offsets) {
    for (int64_t begin = 0; begin < padded; begin += kGroup, ++scales, ++sums, ++offsets) {
        const Neon::F values[2] = {columns(x, cols, begin), columns(x, cols, begin + 16)};
        uint32x4_t bits = vdupq_n_u32(0);  // magnitudes sort like their bits, a NaN above all
        for (const Neon::F& sixteen : values)
            for (const float32x4_t& four : sixteen.v) bits = vmaxq_u32(bits, vreinterpretq_u32_f32(vabsq_f32(four)));
        const float largest = bits_to_float(vmaxvq_u32(bits));
        const bool usable = largest > kTiny && largest <= kLargest;  // NaN and infinity go on through the scale
        const float inverse = usable ? 127.0f / largest : 0.0f;
        *scales = largest > kTiny || largest != largest ? largest / 127.0f : 0.0f;
        int32x4_t sum = vdupq_n_s32(0);
        for (int h = 0; h < 2; ++h) {
            int32x4_t whole[kQuarters];
            for (int q = 0; q < kQuarters; ++q) {
                whole[q] = usable ? vcvtnq_s32_f32(vmulq_n_f32(values[h].v[q], inverse)) : vdupq_n_s32(0);
                sum = vaddq_s32(sum, whole[q]);
            }
            const int16x8_t low = vcombine_s16(vmovn_s32(whole[0]), vmovn_s32(whole[1]));
            const int16x8_t high = vcombine_s16(vmovn_s32(whole[2]), vmovn_s32(whole[3]));
            vst1q_s8(quants + begin + 16 * h, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
        *sums = vaddvq_s32(sum);
        *offsets = *scales * static_cast<float>(*sums);
    }
}

const LinearKernels linear_neon = {
    "neon",
    {product_float32_neon, product_bfloat16_neon, product<Grouped<NeonInt8<false>>>, product<Grouped<NeonInt4>>},
    {Form::kFloat32, Form::kRounded, Form::kBytes, Form::kBytes},
    nullptr,
    quantise_neon,
    {sums_int8_neon, sums_int4_neon},
    round_to_bfloat16_neon};

}  // namespace ga
