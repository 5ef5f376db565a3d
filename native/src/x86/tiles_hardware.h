// AMX's tile registers: 0 to 3 hold sums, 4 and 5 rows of activations, 6 and 7 units of weights.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ga {

// The memory that LDTILECFG reads: palette 1, bytes per row and rows of each tile.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// In assembly, because GCC's intrinsics want tile numbers as literals and not as template arguments.
struct HardwareTiles {
    static constexpr const char* kName = "amx";
    static void configure(const TileShapes& shapes) { asm volatile("ldtilecfg (%0)" ::"r"(&shapes) : "memory"); }
    static void release() { asm volatile("tilerelease"); }
    template <int T>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    template <int T>
    static void load(const void* p, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    static void store(void* p, int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory");
    }
    // Signed activations times unsigned weights, four columns at a time.
    template <int C, int A, int B>
    static void dot_int8() {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
    template <int C, int A, int B>
    static void dot_bfloat16() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};

}  // namespace ga
