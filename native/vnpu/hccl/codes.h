// HCCL's own codes, as torch_npu passes them: results, data types, reductions.
#pragma once
#include <stdint.h>

#include <string>

#include "../error.h"

namespace ga::vnpu::hccl {

constexpr Status kParameter = 1;
constexpr Status kInternal = 4;       // a rank died, left or was interrupted; the system refused something
constexpr Status kUnsupported = 5;
constexpr Status kTimedOut = 9;

using DataType = int32_t;
constexpr DataType kInt8 = 0, kInt16 = 1, kInt32 = 2, kFloat16 = 3, kFloat32 = 4, kInt64 = 5, kUint64 = 6, kUint8 = 7,
                   kUint16 = 8, kUint32 = 9, kFloat64 = 10, kBfloat16 = 11, kInt128 = 12, kHifloat8 = 14,
                   kFloat8E4m3 = 15, kFloat8E5m2 = 16, kFloat8E8m0 = 17;

using Reduction = int32_t;
constexpr Reduction kSum = 0, kProduct = 1, kMaximum = 2, kMinimum = 3, kNoReduction = -1;

// What a rank can enter together with the others.
enum class Operation : uint32_t {
    nothing, all_reduce, reduce, broadcast, all_gather, all_gather_v, reduce_scatter, reduce_scatter_v, scatter,
    all_to_all, all_to_all_v
};

size_t bytes_of(DataType dtype);               // of one element; 0: no such type
std::string name_of(DataType dtype);
std::string name_of_reduction(Reduction reduction);
const char* name_of(Operation operation);

}  // namespace ga::vnpu::hccl
