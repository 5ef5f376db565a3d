// Handles live in slots of one reserved range, so that any address can be checked before it is followed.
#include "handles.h"

#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <new>
#include <string>

#include "error.h"
#include "half.h"

namespace ga::vnpu {
namespace {

constexpr size_t kSlot = 512, kSlots = size_t{1} << 23;  // 4 GiB of addresses, not of memory
static_assert(sizeof(Tensor) <= kSlot && sizeof(List) <= kSlot && sizeof(Array) <= kSlot && sizeof(Scalar) <= kSlot);

class Arena {
public:
    Arena() {
        void* range = mmap(nullptr, kSlot * kSlots, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        base_ = range == MAP_FAILED ? nullptr : static_cast<char*>(range);
    }

    void* take() {
        Spares& mine = spares();
        if (!mine.slots.empty()) {
            void* slot = mine.slots.back();
            mine.slots.pop_back();
            return slot;
        }
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!returned_.empty()) {
                void* slot = returned_.back();
                returned_.pop_back();
                return slot;
            }
        }
        const size_t index = used_.fetch_add(1);
        return base_ == nullptr || index >= kSlots ? nullptr : base_ + index * kSlot;
    }

    void give_back(void* slot) {
        static_cast<Handle*>(slot)->kind = Kind::free;
        spares().slots.push_back(slot);
    }

    bool holds(const void* address) const {
        const char* place = static_cast<const char*>(address);
        const size_t used = used_.load(std::memory_order_relaxed);
        return base_ != nullptr && place >= base_ && place < base_ + used * kSlot && (place - base_) % kSlot == 0;
    }

private:
    // A thread's own free slots; they go to everybody when the thread ends.
    struct Spares {
        Arena* arena;
        std::vector<void*> slots;
        ~Spares() {
            const std::lock_guard<std::mutex> lock(arena->mutex_);
            arena->returned_.insert(arena->returned_.end(), slots.begin(), slots.end());
        }
    };
    Spares& spares() {
        static thread_local Spares mine{this, {}};
        return mine;
    }

    char* base_;
    std::atomic<size_t> used_{0};
    std::mutex mutex_;
    std::vector<void*> returned_;
};

Arena& arena() {
    static Arena* const one = new Arena;  // never destroyed: threads may end after main
    return *one;
}

template <typename T>
T* make(Kind kind) {
    void* slot = arena().take();
    if (slot == nullptr) {
        set_error("too many tensor handles are alive");
        return nullptr;
    }
    T* handle = new (slot) T;
    handle->kind = kind;
    return handle;
}

}  // namespace

const Handle* find_handle(const void* address, Kind kind) {
    if (!arena().holds(address)) return nullptr;
    const Handle* handle = static_cast<const Handle*>(address);
    return handle->kind == kind ? handle : nullptr;
}

Tensor* make_tensor(int32_t dtype, int32_t rank, const int64_t* dims, const int64_t* strides, int64_t offset,
                    int32_t format, int32_t storage_rank, const int64_t* storage_dims, void* data) {
    if (rank < 0 || rank > kMaxDims || storage_rank < 0 || storage_rank > kMaxDims) {
        set_error("a tensor of " + std::to_string(rank > storage_rank ? rank : storage_rank) +
                  " dimensions: CANN's operators take at most " + std::to_string(kMaxDims));
        return nullptr;
    }
    Tensor* tensor = make<Tensor>(Kind::tensor);
    if (tensor == nullptr) return nullptr;
    tensor->dtype = dtype;
    tensor->format = format;
    tensor->rank = rank;
    tensor->storage_rank = storage_rank;
    tensor->offset = offset;
    tensor->data = static_cast<char*>(data);
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
        tensor->dims[i] = dims[i];
        tensor->strides[i] = strides != nullptr ? strides[i] : step;
        step *= dims[i];
    }
    for (int i = 0; i < storage_rank; ++i) tensor->storage_dims[i] = storage_dims[i];
    return tensor;
}

Array* make_int_array(const int64_t* values, size_t count) {
    Array* array = make<Array>(Kind::int_array);
    if (array != nullptr) array->integers.assign(values, values + count);
    return array;
}

void destroy_handle(const Handle* constant) {
    Handle* handle = const_cast<Handle*>(constant);
    if (handle == nullptr || !arena().holds(handle)) return;
    switch (handle->kind) {
        case Kind::free: return;  // destroyed twice
        case Kind::tensor:
        case Kind::scalar: break;
        case Kind::int_array:
        case Kind::float_array:
        case Kind::bool_array: static_cast<Array*>(handle)->~Array(); break;
        case Kind::tensor_list:
        case Kind::scalar_list: {
            List* list = static_cast<List*>(handle);
            for (Handle* member : list->members) destroy_handle(member);
            list->~List();
            break;
        }
    }
    arena().give_back(handle);
}

int item_size(int32_t dtype) {
    switch (dtype) {
        case 0: case 3: case 8: return 4;                     // float32, int32, uint32
        case 1: case 6: case 7: case 27: return 2;            // float16, int16, uint16, bfloat16
        case 2: case 4: case 12: return 1;                    // int8, uint8, bool
        case 9: case 10: case 11: case 16: return 8;          // int64, uint64, float64, complex64
        case 17: return 16;                                   // complex128
        case 33: return 4;                                    // complex32
        case 34: case 35: case 36: case 37: return 1;         // 8-bit floats
        default: return 0;
    }
}

namespace {

// A number of any type as what Python has: an integer, or a real and an imaginary part.
void read_number(const void* value, int32_t dtype, Scalar* out) {
    const auto get = [value](auto sample) {
        memcpy(&sample, value, sizeof sample);
        return sample;
    };
    out->real[0] = out->real[1] = 0;
    switch (dtype) {
        case 0: out->real[0] = get(float{}); break;
        case 1: out->real[0] = half_to_float(get(uint16_t{})); break;
        case 27: out->real[0] = bfloat16_to_float(get(uint16_t{})); break;
        case 11: out->real[0] = get(double{}); break;
        case 16: out->real[0] = get(std::complex<float>{}).real(); out->real[1] = get(std::complex<float>{}).imag(); break;
        case 17: memcpy(out->real, value, sizeof out->real); break;
        case 2: out->integer = get(int8_t{}); break;
        case 3: out->integer = get(int32_t{}); break;
        case 4: out->integer = get(uint8_t{}); break;
        case 6: out->integer = get(int16_t{}); break;
        case 7: out->integer = get(uint16_t{}); break;
        case 8: out->integer = get(uint32_t{}); break;
        case 12: out->integer = get(uint8_t{}) != 0; break;
        default: out->integer = get(int64_t{}); break;
    }
}

template <typename T>
Array* array_of(Kind kind, const T* values, uint64_t count) {
    if (values == nullptr && count != 0) return nullptr;
    Array* array = make<Array>(kind);
    if (array != nullptr) array->integers.assign(values, values + count);
    return array;
}

List* list_of(Kind kind, const void* const* members, uint64_t count) {
    List* list = make<List>(kind);
    if (list == nullptr) return nullptr;
    for (uint64_t i = 0; i < count; ++i) list->members.push_back(static_cast<Handle*>(const_cast<void*>(members[i])));
    return list;
}

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT void* aclCreateTensor(const int64_t* dims, uint64_t rank, int32_t dtype, const int64_t* strides, int64_t offset,
                                int32_t format, const int64_t* storage_dims, uint64_t storage_rank, void* data) {
    return make_tensor(dtype, static_cast<int32_t>(rank), dims, strides, offset, format,
                       static_cast<int32_t>(storage_rank), storage_dims, data);
}

GA_EXPORT void* aclCreateScalar(const void* value, int32_t dtype) {
    Scalar* scalar = value == nullptr ? nullptr : make<Scalar>(Kind::scalar);
    if (scalar == nullptr) return nullptr;
    scalar->dtype = dtype;
    read_number(value, dtype, scalar);
    return scalar;
}

GA_EXPORT void* aclCreateIntArray(const int64_t* values, uint64_t count) {
    return array_of(Kind::int_array, values, count);
}

GA_EXPORT void* aclCreateBoolArray(const bool* values, uint64_t count) {
    return array_of(Kind::bool_array, values, count);
}

GA_EXPORT void* aclCreateFloatArray(const float* values, uint64_t count) {
    Array* array = make<Array>(Kind::float_array);
    if (array != nullptr) array->floats.assign(values, values + count);
    return array;
}

GA_EXPORT void* aclCreateTensorList(const void* const* members, uint64_t count) {
    return list_of(Kind::tensor_list, members, count);
}

GA_EXPORT void* aclCreateScalarList(const void* const* members, uint64_t count) {
    return list_of(Kind::scalar_list, members, count);
}

#define GA_DESTROY(name)                                     \
    GA_EXPORT int32_t name(const void* handle) {             \
        destroy_handle(static_cast<const Handle*>(handle));  \
        return 0;                                            \
    }
GA_DESTROY(aclDestroyTensor)
GA_DESTROY(aclDestroyScalar)
GA_DESTROY(aclDestroyIntArray)
GA_DESTROY(aclDestroyFloatArray)
GA_DESTROY(aclDestroyBoolArray)
GA_DESTROY(aclDestroyTensorList)
GA_DESTROY(aclDestroyScalarList)

// The dims are the caller's, who frees them with delete[].
GA_EXPORT int32_t aclGetViewShape(const void* address, int64_t** dims, uint64_t* rank) {
    const Handle* handle = find_handle(address, Kind::tensor);
    if (handle == nullptr || dims == nullptr || rank == nullptr) return fail(kNullArgument, "aclGetViewShape: no tensor");
    const Tensor* tensor = static_cast<const Tensor*>(handle);
    *rank = static_cast<uint64_t>(tensor->rank);
    *dims = new int64_t[static_cast<size_t>(tensor->rank) + 1];
    memcpy(*dims, tensor->dims, sizeof(int64_t) * static_cast<size_t>(tensor->rank));
    return 0;
}

// Sets the real shape of an output whose shape is known only after running.
GA_EXPORT int32_t ga_vnpu_set_view_shape(void* address, const int64_t* dims, int32_t rank) {
    if (find_handle(address, Kind::tensor) == nullptr || rank < 0 || rank > kMaxDims) return kInvalidHandle;
    Tensor* tensor = static_cast<Tensor*>(address);
    tensor->rank = rank;
    memcpy(tensor->dims, dims, sizeof(int64_t) * static_cast<size_t>(rank));
    return 0;
}
