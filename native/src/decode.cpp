// Decoders of the codings that checkpoints use. Block layouts follow ggml's ggml-common.h; gallium.checkpoints.formats
// has the same in NumPy, and the tests hold the two together.
#include "decode.h"

#include "half.h"
#include "rows.h"

namespace ga {
namespace {

float half_at(const uint8_t* p) { return half_to_float(static_cast<uint16_t>(p[0] | p[1] << 8)); }

void decode_f32(const uint8_t* p, int64_t n, float* out) { memcpy(out, p, static_cast<size_t>(n) * 4); }

void decode_f16(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = half_at(p + 2 * i);
}

void decode_bf16(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = bf16_to_float(h);
    }
}

void decode_q8_0(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 34, out += 32) {
        const float d = half_at(p);
        for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(p[2 + i]));
    }
}

void decode_q4_0(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 18, out += 32) {
        const float d = half_at(p);
        for (int i = 0; i < 16; ++i) {
            out[i] = d * static_cast<float>((p[2 + i] & 15) - 8);
            out[16 + i] = d * static_cast<float>((p[2 + i] >> 4) - 8);
        }
    }
}

void decode_q4_1(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 20, out += 32) {
        const float d = half_at(p), m = half_at(p + 2);
        for (int i = 0; i < 16; ++i) {
            out[i] = d * static_cast<float>(p[4 + i] & 15) + m;
            out[16 + i] = d * static_cast<float>(p[4 + i] >> 4) + m;
        }
    }
}

// The 6-bit scale and min of group g of a Q4_K or Q5_K super-block.
void k_scale(const uint8_t* packed, int g, int& scale, int& min) {
    if (g < 4) {
        scale = packed[g] & 63;
        min = packed[g + 4] & 63;
    } else {
        scale = (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4;
        min = (packed[g + 4] >> 4) | (packed[g] >> 6) << 4;
    }
}

// Groups of 32: low nibbles of 32 bytes, then their high nibbles; `fifth` has one more bit per group, or is null.
void decode_k(const uint8_t* head, const uint8_t* fifth, const uint8_t* nibbles, float* out) {
    const float d = half_at(head), least = half_at(head + 2);
    for (int g = 0; g < 8; ++g, out += 32) {
        int scale, min;
        k_scale(head + 4, g, scale, min);
        const float step = d * static_cast<float>(scale), offset = least * static_cast<float>(min);
        const uint8_t* q = nibbles + (g / 2) * 32;
        for (int i = 0; i < 32; ++i) {
            int value = g % 2 ? q[i] >> 4 : q[i] & 15;
            if (fifth) value |= (fifth[i] >> g & 1) << 4;
            out[i] = step * static_cast<float>(value) - offset;
        }
    }
}

void decode_q4_k(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 144, out += 256) decode_k(p, nullptr, p + 16, out);
}

void decode_q5_k(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 176, out += 256) decode_k(p, p + 16, p + 48, out);
}

void decode_q6_k(const uint8_t* p, int64_t n, float* out) {
    for (int64_t b = 0; b < n; ++b, p += 210, out += 256) {
        const float d = half_at(p + 208);
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, part = i % 128 / 32, at = i % 32;
            const int low = p[half * 64 + part % 2 * 32 + at] >> (part / 2 * 4) & 15;
            const int high = p[128 + half * 32 + at] >> (2 * part) & 3;
            const float scale = static_cast<float>(static_cast<int8_t>(p[192 + i / 16])) * d;
            out[i] = scale * static_cast<float>((low | high << 4) - 32);
        }
    }
}

void decode_integers(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int8_t>(p[i]));
}

const Coding kCodings[] = {
    {1, 4, decode_f32},     {1, 2, decode_f16},     {1, 2, decode_bf16},    {32, 34, decode_q8_0},  {32, 18, decode_q4_0},
    {32, 20, decode_q4_1},  {256, 144, decode_q4_k}, {256, 176, decode_q5_k}, {256, 210, decode_q6_k},
    {1, 1, decode_integers}, {1, 1, decode_integers},
};

}  // namespace

const Coding& coding(int64_t storage) { return kCodings[storage]; }

bool has_lines(int64_t storage) { return storage == GA_Q4_0 || storage == GA_Q4_1 || storage == GA_Q4_K; }

void read_line(int64_t storage, const uint8_t* row, int64_t index, Line& line) {
    if (storage == GA_Q4_K) {
        const uint8_t* p = row + index / 8 * 144;
        const int g = static_cast<int>(index % 8);
        int scale, min;
        k_scale(p + 4, g, scale, min);
        line.d = half_at(p) * static_cast<float>(scale);
        line.m = -half_at(p + 2) * static_cast<float>(min);
        for (int i = 0; i < 32; ++i) line.q[i] = g % 2 ? p[16 + g / 2 * 32 + i] >> 4 : p[16 + g / 2 * 32 + i] & 15;
        return;
    }
    const bool offset = storage == GA_Q4_1;
    const uint8_t* p = row + index * (offset ? 20 : 18);
    line.d = half_at(p);
    line.m = offset ? half_at(p + 2) : -8.0f * line.d;
    const uint8_t* q = p + (offset ? 4 : 2);
    for (int i = 0; i < 16; ++i) {
        line.q[i] = q[i] & 15;
        line.q[16 + i] = q[i] >> 4;
    }
}

}  // namespace ga

void ga_decode(const ga_decode_args* args) {
    const ga_decode_args a = *args;
    const ga::Coding& c = ga::coding(a.storage);
    ga::for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            c.decode(a.source + r * ga::row_bytes(c, a.cols), a.cols / c.block, a.out + r * a.cols);
    });
}
