// Units of bfloat16 weights, as bfloat16 panels hold them, made of int8 and int4 panels as these are read.
//
// A weight is its value in float32 (d q, or d q + m rounded once), then rounded to bfloat16, ties to even: what a bfloat16
// matrix of the same values would hold, bit for bit. Values are multiples of 2^-24, so there are no denormal numbers,
// which AMX takes for zero; a scale that is not finite makes NaN of its whole group of columns.
//
// A vector has one column of 16 rows in float32, so d and m are where they are needed as they come. Vector operations for
// 32 columns (16 units), beside loads and stores; two ports take 512 bits:
//   int4: 4 x {7 shifts, 8 lookups, 8 FMA, 4 roundings of 4 operations, 4 permutations} and 4 for d, m: 176, 88 cycles
//   int8: 8 x {3 shifts, 4 logic, 4 FMA, 2 roundings of 4 operations, 2 permutations} and 3 for d: 171, 86 cycles
#pragma once
#include "matrix.h"
#include "x86/simd_avx512.h"

namespace ga {

// Two columns as one unit.
inline __m512i unit_of(__m512 even, __m512 odd) {
    const __m512i rows = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                                           0x180008, 0x190009, 0x1A000A, 0x1B000B, 0x1C000C, 0x1D000D, 0x1E000E, 0x1F000F);
    return _mm512_permutexvar_epi16(rows, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

inline __m512 halves_at(const char* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Each makes the 16 units of columns [k, k + 32), k a multiple of 32, of a panel.
struct Int8Units {
    static inline void make(const char* panel, int64_t k, char* units) {
        const char* packed = int8_units(panel, k / kGroup);
        const __m512 d = halves_at(int8_scales(panel, k / kGroup));
        // A byte in bits 8 to 15 of a float of exponent 15 is 2^15 + byte, and weights are stored as w + 128. All is exact.
        const __m512 excess = _mm512_mul_ps(d, _mm512_set1_ps(-32768.0f - 128.0f));
        const auto column = [&](__m512i shifted) {
            const __m512i byte = _mm512_and_si512(shifted, _mm512_set1_epi32(0xFF00));
            const __m512i biased = _mm512_or_si512(byte, _mm512_set1_epi32(0x47000000));
            return _mm512_fmadd_ps(_mm512_castsi512_ps(biased), d, excess);
        };
        for (int j = 0; j < 8; ++j, units += 2 * kUnit) {
            const __m512i four = _mm512_load_si512(packed + j * kUnit);
            const __m512 c0 = column(_mm512_slli_epi32(four, 8)), c1 = column(four);
            const __m512 c2 = column(_mm512_srli_epi32(four, 8)), c3 = column(_mm512_srli_epi32(four, 16));
            _mm512_store_si512(units, unit_of(c0, c1));
            _mm512_store_si512(units + kUnit, unit_of(c2, c3));
        }
    }
};

struct Int4Units {
    static inline void make(const char* panel, int64_t k, char* units) {
        const char* packed = panel + k / kGroup * kInt4GroupBytes;
        const __m512 d = halves_at(packed + 256), m = halves_at(packed + 288);
        // The lookup takes the lowest four bits of a lane.
        const __m512 numbers =
            _mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        const auto column = [&](__m512i shifted) {
            return _mm512_fmadd_ps(_mm512_permutexvar_ps(shifted, numbers), d, m);
        };
        for (int j = 0; j < 4; ++j, units += 2 * kUnit) {
            const __m512i eight = _mm512_load_si512(packed + j * kUnit);  // low: columns 4j .. 4j+3; high: 16 more
            const __m512 c0 = column(eight), c16 = column(_mm512_srli_epi32(eight, 4));
            const __m512 c1 = column(_mm512_srli_epi32(eight, 8)), c17 = column(_mm512_srli_epi32(eight, 12));
            const __m512 c2 = column(_mm512_srli_epi32(eight, 16)), c18 = column(_mm512_srli_epi32(eight, 20));
            const __m512 c3 = column(_mm512_srli_epi32(eight, 24)), c19 = column(_mm512_srli_epi32(eight, 28));
            _mm512_store_si512(units, unit_of(c0, c1));
            _mm512_store_si512(units + kUnit, unit_of(c2, c3));
            _mm512_store_si512(units + 8 * kUnit, unit_of(c16, c17));
            _mm512_store_si512(units + 9 * kUnit, unit_of(c18, c19));
        }
    }
};

}  // namespace ga
