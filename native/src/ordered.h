// Order keys: unsigned integers that sort like (value, lower index first), without undefined behaviour on NaN.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ga {

// Larger key = larger value, and among equal values the lower index. -0 equals +0.
static inline uint64_t order_key(float value, uint32_t index) {
    value += 0.0f;
    uint32_t u;
    memcpy(&u, &value, sizeof u);
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return static_cast<uint64_t>(u) << 32 | (0xFFFFFFFFu - index);
}
static inline uint32_t index_of(uint64_t key) { return 0xFFFFFFFFu - static_cast<uint32_t>(key); }

}  // namespace ga
