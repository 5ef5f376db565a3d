// The reductions, by type: how an element is read and written, and how two are joined.
#include "reduce.h"

#include <string.h>

#include <algorithm>
#include <type_traits>

namespace ga::vnpu::hccl {
namespace {

uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Numbers that are reduced as they are.
template <class T>
struct Plain {
    using Stored = T;
    using Wide = T;
    static Wide load(Stored value) { return value; }
    static Stored store(Wide value) { return value; }
};

struct Bfloat16 {
    using Stored = uint16_t;
    using Wide = float;
    static Wide load(Stored value) { return float_of(static_cast<uint32_t>(value) << 16); }
    static Stored store(Wide value) {
        const uint32_t bits = bits_of(value);
        const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<Stored>((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
    }
};

// Written without branches, so that compilers make vector code of it.
struct Float16 {
    using Stored = uint16_t;
    using Wide = float;
    static Wide load(Stored value) {
        const uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16, rest = (value & 0x7FFFu) << 13;
        constexpr uint32_t kSmallest = 113u << 23;  // 2^-14, the smallest normal number
        const uint32_t small = bits_of(float_of(rest + kSmallest) - float_of(kSmallest));
        const uint32_t normal = rest + (112u << 23);
        const uint32_t infinite = rest | 0x7F800000u;
        return float_of(sign | (rest < (1u << 23) ? small : rest >= (31u << 23) ? infinite : normal));
    }
    static Stored store(Wide value) {
        const uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
        constexpr uint32_t kAlign = 126u << 23;  // adding 0.5 moves the last bit of a subnormal to bit 0 and rounds
        const uint32_t small = bits_of(float_of(std::min(rest, 113u << 23)) + float_of(kAlign)) - kAlign;
        const uint32_t normal = (rest - (112u << 23) + 0xFFFu + ((rest >> 13) & 1u)) >> 13;
        const uint32_t huge = rest > 0x7F800000u ? 0x7E00u : 0x7C00u;
        return static_cast<Stored>(sign | (rest >= (143u << 23) ? huge : rest < (113u << 23) ? small : normal));
    }
};

// Integers wrap around: they are joined as unsigned numbers that are not promoted to int.
template <class T>
using Unsigned = std::conditional_t<(sizeof(T) < 8), uint32_t, uint64_t>;
template <class T>
using Joined = std::conditional_t<std::is_floating_point_v<T>, T, Unsigned<T>>;
struct Sum {
    template <class T>
    static T join(T a, T b) { return static_cast<T>(static_cast<Joined<T>>(a) + static_cast<Joined<T>>(b)); }
};
struct Product {
    template <class T>
    static T join(T a, T b) { return static_cast<T>(static_cast<Joined<T>>(a) * static_cast<Joined<T>>(b)); }
};
// Not-a-number wins over every number, from whichever rank it comes.
struct Maximum {
    template <class T>
    static T join(T a, T b) { return a > b || a != a ? a : b; }
};
struct Minimum {
    template <class T>
    static T join(T a, T b) { return a < b || a != a ? a : b; }
};

template <class Type, class Join>
void reduce(const char* const* sources, uint32_t ranks, char* to, size_t count) {
    using Stored = typename Type::Stored;
    constexpr size_t kBlock = 1024;
    typename Type::Wide joined[kBlock];
    for (size_t start = 0; start < count; start += kBlock) {
        const size_t size = std::min(kBlock, count - start);
        for (uint32_t rank = 0; rank < ranks; ++rank) {
            const Stored* from = reinterpret_cast<const Stored*>(sources[rank]) + start;
            if (rank == 0) {
                for (size_t i = 0; i < size; ++i) joined[i] = Type::load(from[i]);
            } else {
                for (size_t i = 0; i < size; ++i) joined[i] = Join::join(joined[i], Type::load(from[i]));
            }
        }
        Stored* out = reinterpret_cast<Stored*>(to) + start;
        for (size_t i = 0; i < size; ++i) out[i] = Type::store(joined[i]);
    }
}

template <class Type>
Reducer by_reduction(Reduction reduction) {
    switch (reduction) {
        case kSum: return reduce<Type, Sum>;
        case kProduct: return reduce<Type, Product>;
        case kMaximum: return reduce<Type, Maximum>;
        case kMinimum: return reduce<Type, Minimum>;
        default: return nullptr;
    }
}

}  // namespace

Reducer reducer(DataType dtype, Reduction reduction) {
    switch (dtype) {
        case kInt8: return by_reduction<Plain<int8_t>>(reduction);
        case kInt16: return by_reduction<Plain<int16_t>>(reduction);
        case kInt32: return by_reduction<Plain<int32_t>>(reduction);
        case kInt64: return by_reduction<Plain<int64_t>>(reduction);
        case kUint8: return by_reduction<Plain<uint8_t>>(reduction);
        case kUint16: return by_reduction<Plain<uint16_t>>(reduction);
        case kUint32: return by_reduction<Plain<uint32_t>>(reduction);
        case kUint64: return by_reduction<Plain<uint64_t>>(reduction);
        case kFloat16: return by_reduction<Float16>(reduction);
        case kBfloat16: return by_reduction<Bfloat16>(reduction);
        case kFloat32: return by_reduction<Plain<float>>(reduction);
        case kFloat64: return by_reduction<Plain<double>>(reduction);
        default: return nullptr;
    }
}

}  // namespace ga::vnpu::hccl
