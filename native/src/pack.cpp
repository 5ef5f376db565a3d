// Packing: stored rows into the panels of a matrix, quantised on the way if the matrix asks for it.
#include <atomic>

#include "best_line.h"
#include "best_scale.h"
#include "buffer.h"
#include "decode.h"
#include "half.h"
#include "matrix.h"
#include "pool.h"

namespace ga {
namespace {

void put_float32(char* panel, int64_t lane, const float* row, int64_t cols) {
    float* to = reinterpret_cast<float*>(panel) + lane;
    for (int64_t k = 0; k < cols; ++k) to[k * kPanelRows] = row[k];
}

void put_bfloat16(char* panel, int64_t lane, const float* row, int64_t cols) {
    uint16_t* to = reinterpret_cast<uint16_t*>(panel) + lane * 2;
    for (int64_t k = 0; k < cols; ++k) to[k / 2 * 32 + k % 2] = float_to_bf16(row[k]);
}

// One group of 32 in 8 bits, with the quants for a scale in float16.
void put_int8_group(char* panel, int64_t lane, int64_t group, uint16_t d, const int8_t* quants) {
    memcpy(const_cast<char*>(int8_scales(panel, group)) + lane * 2, &d, 2);
    auto* to = reinterpret_cast<uint8_t*>(const_cast<char*>(int8_units(panel, group))) + lane * 4;
    for (int i = 0; i < kGroup / 4; ++i, to += kUnit) {
        uint32_t four;
        memcpy(&four, quants + 4 * i, 4);
        four ^= 0x80808080u;  // + 128, byte by byte
        memcpy(to, &four, 4);
    }
}

void put_int8(char* panel, int64_t lane, const float* row, int64_t cols) {
    for (int64_t group = 0; group * kGroup < padded_cols(cols, kInt8); ++group) {
        const int64_t left = cols - group * kGroup, n = left < 0 ? 0 : left < kGroup ? left : kGroup;
        const Scaled best = best_scale(row + group * kGroup, static_cast<int>(n));
        put_int8_group(panel, lane, group, float_to_half(best.d), best.q);
    }
}

// A row of Q8_0 blocks as they are.
void copy_int8(char* panel, int64_t lane, const uint8_t* row, int64_t cols) {
    const int8_t zeros[kGroup] = {};
    for (int64_t group = 0; group * kGroup < padded_cols(cols, kInt8); ++group) {
        const uint8_t* block = row + group * 34;
        const bool stored = group * kGroup < cols;
        const uint16_t d = stored ? static_cast<uint16_t>(block[0] | block[1] << 8) : 0;
        put_int8_group(panel, lane, group, d, stored ? reinterpret_cast<const int8_t*>(block + 2) : zeros);
    }
}

void put_line(char* panel, int64_t lane, int64_t group, const Line& line) {
    uint8_t* to = reinterpret_cast<uint8_t*>(panel) + group * kInt4GroupBytes;
    for (int i = 0; i < 16; ++i)
        to[i / 4 * kUnit + lane * 4 + i % 4] = static_cast<uint8_t>(line.q[i] | line.q[16 + i] << 4);
    const uint16_t d = float_to_half(line.d), m = float_to_half(line.m);
    memcpy(to + 256 + lane * 2, &d, 2);
    memcpy(to + 288 + lane * 2, &m, 2);
}

// A row of blocks whose nibbles lie as in a panel, with or without an m.
void copy_nibbles(char* panel, int64_t lane, int64_t storage, const uint8_t* row, int64_t cols) {
    const int64_t head = storage == GA_Q4_1 ? 4 : 2;
    for (int64_t group = 0; group * kGroup < cols; ++group, row += head + 16) {
        uint16_t line[2];
        memcpy(line, row, static_cast<size_t>(head));
        if (head == 2) line[1] = float_to_half(-8.0f * half_to_float(line[0]));
        char* to = panel + group * kInt4GroupBytes;
        for (int j = 0; j < 4; ++j) memcpy(to + j * kUnit + lane * 4, row + head + 4 * j, 4);
        memcpy(to + 256 + lane * 2, line, 2);
        memcpy(to + 288 + lane * 2, line + 1, 2);
    }
}

// A row of four-bit blocks as they are.
void copy_int4(char* panel, int64_t lane, int64_t storage, const uint8_t* row, int64_t cols) {
    if (storage != GA_Q4_K) return copy_nibbles(panel, lane, storage, row, cols);
    Line line;
    for (int64_t group = 0; group * kGroup < cols; ++group) {
        read_line(storage, row, group, line);
        put_line(panel, lane, group, line);
    }
}

void put_int4(char* panel, int64_t lane, const float* row, int64_t cols) {
    for (int64_t group = 0; group * kGroup < cols; ++group) {
        const int64_t left = cols - group * kGroup;
        put_line(panel, lane, group, best_line(row + group * kGroup, static_cast<int>(left < 32 ? left : 32)));
    }
}

// A row of integers whose scales are the matrix's own affair.
void copy_integers(char* panel, int64_t lane, int64_t kind, const int8_t* row, int64_t cols) {
    for (int64_t begin = 0; begin < padded_cols(cols, kind); begin += kGroup) {
        int8_t quants[kGroup] = {};
        for (int64_t i = 0; i < kGroup && begin + i < cols; ++i) quants[i] = row[begin + i];
        if (kind == kInt8) {
            put_int8_group(panel, lane, begin / kGroup, float_to_half(1.0f), quants);
            continue;
        }
        Line line;
        line.d = 1.0f;
        line.m = -8.0f;
        for (int64_t i = 0; i < kGroup; ++i) line.q[i] = static_cast<uint8_t>(quants[i] + 8);
        put_line(panel, lane, begin / kGroup, line);
    }
}

using Put = void (*)(char* panel, int64_t lane, const float* row, int64_t cols);
const Put kPut[] = {put_float32, put_bfloat16, put_int8, put_int4};

// Rows [begin, end) of the source, counted from its start. False: no memory.
bool pack_rows(const ga_pack_args& a, int64_t begin, int64_t end) {
    const Coding& c = coding(a.storage);
    const int64_t cols = a.matrix.cols, bytes = row_bytes(c, cols);
    thread_local Buffer buffer;
    float* row = reinterpret_cast<float*>(buffer.get(static_cast<size_t>(cols) * sizeof(float)));
    if (!row) return false;
    for (int64_t r = begin; r < end; ++r) {
        const int64_t at = a.first_row + r;
        char* panel = panel_at(a.matrix, at / kPanelRows);
        const uint8_t* source = a.source + r * bytes;
        if (a.storage >= GA_I8) {
            copy_integers(panel, at % kPanelRows, a.matrix.kind, reinterpret_cast<const int8_t*>(source), cols);
            continue;
        }
        if (a.matrix.kind == kInt4 && has_lines(a.storage)) {
            copy_int4(panel, at % kPanelRows, a.storage, source, cols);
            continue;
        }
        if (a.matrix.kind == kInt8 && a.storage == GA_Q8_0) {
            copy_int8(panel, at % kPanelRows, source, cols);
            continue;
        }
        c.decode(source, cols / c.block, row);
        kPut[a.matrix.kind](panel, at % kPanelRows, row, cols);
    }
    return true;
}

}  // namespace
}  // namespace ga

int64_t ga_matrix_bytes(int64_t rows, int64_t cols, int64_t kind) {
    return (rows + ga::kPanelRows - 1) / ga::kPanelRows * ga::panel_bytes(cols, kind);
}

int32_t ga_pack(const ga_pack_args* args) {
    const ga_pack_args a = *args;
    const int64_t step = 64;
    std::atomic<bool> good{true};
    ga::parallel((a.rows + step - 1) / step, [&](int task, int) {
        const int64_t begin = task * step, end = begin + step < a.rows ? begin + step : a.rows;
        if (!ga::pack_rows(a, begin, end)) good = false;
    });
    return good ? 0 : 1;
}
