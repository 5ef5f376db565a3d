// What a program holds of CANN's objects: tensors, scalars, arrays and lists. torch_npu treats the handles as opaque.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <complex>
#include <vector>

namespace ga::vnpu {

constexpr int kMaxDims = 16;  // that a handle can hold; operators take fewer

enum class Kind : uint32_t { free = 0, tensor, scalar, int_array, float_array, bool_array, tensor_list, scalar_list };

// The first bytes of every handle say what it is, so that a wrong signature is noticed and not followed.
struct Handle {
    Kind kind = Kind::free;
};

struct Tensor : Handle {
    int32_t dtype = 0, format = 0, rank = 0, storage_rank = 0;
    int64_t offset = 0;  // elements, from the start of the storage
    char* data = nullptr;  // the start of the storage
    int64_t dims[kMaxDims], strides[kMaxDims], storage_dims[kMaxDims];
};

struct Scalar : Handle {
    int32_t dtype = 0;
    union {
        int64_t integer;
        double real[2];
    };
};

struct Array : Handle {
    std::vector<int64_t> integers;  // of an int array or a bool array
    std::vector<float> floats;
};

struct List : Handle {
    std::vector<Handle*> members;  // owned; may be null
};

// The handle at this address, or null if there is none of this kind there: never reads foreign memory.
const Handle* find_handle(const void* address, Kind kind);

// For callers in this library. Both copy what they are given; freed with destroy_handle.
Tensor* make_tensor(int32_t dtype, int32_t rank, const int64_t* dims, const int64_t* strides, int64_t offset,
                    int32_t format, int32_t storage_rank, const int64_t* storage_dims, void* data);
Array* make_int_array(const int64_t* values, size_t count);
void destroy_handle(const Handle* handle);

// Bytes of one element; 0 for types of less than a byte and for unknown ones.
int item_size(int32_t dtype);

}  // namespace ga::vnpu
