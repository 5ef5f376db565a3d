// AMX's tile instructions in software, so that the AMX products are tested on machines without AMX. Never chosen by
// itself: it is slow, and its bfloat16 sums may differ from the hardware's in the last bits.
#include "half.h"
#include "x86/linear_bfloat16_tiles.h"

namespace ga {
namespace {

// Semantics as in Intel's Software Developer's Manual: TDPBSUD and TDPBF16PS.
struct EmulatedTiles {
    static constexpr const char* kName = "amx-emulated";
    struct Registers {
        TileShapes shapes;
        alignas(64) unsigned char data[8][16][64];
    };
    static Registers& registers() {
        thread_local Registers kept;
        return kept;
    }
    static void configure(const TileShapes& shapes) {
        registers() = Registers{};
        registers().shapes = shapes;
    }
    static void release() { registers().shapes = TileShapes{}; }
    template <int T>
    static void zero() {
        memset(registers().data[T], 0, sizeof registers().data[T]);
    }
    template <int T>
    static void load(const void* p, int64_t stride) {
        Registers& all = registers();
        for (int r = 0; r < all.shapes.rows[T]; ++r)
            memcpy(all.data[T][r], static_cast<const char*>(p) + r * stride, all.shapes.row_bytes[T]);
    }
    template <int T>
    static void store(void* p, int64_t stride) {
        const Registers& all = registers();
        for (int r = 0; r < all.shapes.rows[T]; ++r)
            memcpy(static_cast<char*>(p) + r * stride, all.data[T][r], all.shapes.row_bytes[T]);
    }
    template <int C, int A, int B>
    static void dot_int8() {
        Registers& all = registers();
        for (int m = 0; m < all.shapes.rows[C]; ++m)
            for (int n = 0; n < 16; ++n) {
                int32_t sum;
                memcpy(&sum, all.data[C][m] + 4 * n, 4);
                for (int k = 0; k < all.shapes.row_bytes[A]; ++k)
                    sum += static_cast<signed char>(all.data[A][m][k]) * all.data[B][k / 4][4 * n + k % 4];
                memcpy(all.data[C][m] + 4 * n, &sum, 4);
            }
    }
    template <int C, int A, int B>
    static void dot_bfloat16() {
        Registers& all = registers();
        const auto at = [&](int tile, int row, int i) {
            uint16_t h;
            memcpy(&h, all.data[tile][row] + 2 * i, 2);
            return bf16_to_float(h);
        };
        for (int m = 0; m < all.shapes.rows[C]; ++m)
            for (int n = 0; n < 16; ++n) {
                float even = 0.0f, odd = 0.0f, sum;
                for (int k = 0; k < 16; ++k) {
                    even += at(A, m, 2 * k) * at(B, k, 2 * n);
                    odd += at(A, m, 2 * k + 1) * at(B, k, 2 * n + 1);
                }
                memcpy(&sum, all.data[C][m] + 4 * n, 4);
                sum += even + odd;
                memcpy(all.data[C][m] + 4 * n, &sum, 4);
            }
    }
};

}  // namespace

const LinearKernels linear_amx_emulated = tile_table<EmulatedTiles>();

}  // namespace ga
