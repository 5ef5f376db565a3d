// Names and sizes of HCCL's codes.
#include "codes.h"

#include <array>

namespace ga::vnpu::hccl {
namespace {

struct Type {
    const char* name;
    size_t bytes;
};

// By code; 13 is not used.
constexpr std::array<Type, 18> kTypes{{{"int8", 1},     {"int16", 2},    {"int32", 4},    {"float16", 2},
                                       {"float32", 4},  {"int64", 8},    {"uint64", 8},   {"uint8", 1},
                                       {"uint16", 2},   {"uint32", 4},   {"float64", 8},  {"bfloat16", 2},
                                       {"int128", 16},  {nullptr, 0},    {"hifloat8", 1}, {"float8_e4m3", 1},
                                       {"float8_e5m2", 1}, {"float8_e8m0", 1}}};

constexpr std::array<const char*, 4> kReductions{"sum", "product", "maximum", "minimum"};

constexpr std::array<const char*, 11> kOperations{
    "nothing",         "HcclAllReduce",     "HcclReduce",       "HcclBroadcast", "HcclAllGather", "HcclAllGatherV",
    "HcclReduceScatter", "HcclReduceScatterV", "HcclScatter", "HcclAlltoAll",  "HcclAlltoAllV"};

bool known(DataType dtype) {
    return dtype >= 0 && static_cast<size_t>(dtype) < kTypes.size() && kTypes[static_cast<size_t>(dtype)].bytes != 0;
}

}  // namespace

size_t bytes_of(DataType dtype) { return known(dtype) ? kTypes[static_cast<size_t>(dtype)].bytes : 0; }

std::string name_of(DataType dtype) {
    return known(dtype) ? kTypes[static_cast<size_t>(dtype)].name : "data type " + std::to_string(dtype);
}

std::string name_of_reduction(Reduction reduction) {
    if (reduction == kNoReduction) return "no reduction";
    const bool named = reduction >= 0 && static_cast<size_t>(reduction) < kReductions.size();
    return named ? kReductions[static_cast<size_t>(reduction)] : "reduction " + std::to_string(reduction);
}

const char* name_of(Operation operation) {
    const size_t index = static_cast<size_t>(operation);
    return index < kOperations.size() ? kOperations[index] : "an unknown operation";
}

}  // namespace ga::vnpu::hccl
