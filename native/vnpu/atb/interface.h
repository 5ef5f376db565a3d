// What libop_plugin_atb.so uses of ATB's C++ interface. Mangled names, the order of virtual functions and the layouts are
// the ABI (facts from Ascend/op-plugin 517f2e7, op_plugin/third_party/atb, BSD-3-Clause); everything else is ours.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

namespace atb __attribute__((visibility("default"))) {

using Status = int32_t;

struct TensorDesc {
    int32_t dtype = -1, format = -1;
    int64_t dims[8];
    uint64_t rank = 0;
};

struct Tensor {
    TensorDesc desc;
    void* device = nullptr;
    void* host = nullptr;  // of a CPU tensor; the other pointer is null then
    uint64_t bytes = 0;
};

// Up to 64 elements in place; more of them live on the heap.
template <class T>
struct SVector {
    size_t capacity = 0, size = 0;
    T place[65];
    T* heap = nullptr;

    const T& operator[](size_t i) const { return heap != nullptr ? heap[i] : place[i]; }
};

struct VariantPack {
    SVector<Tensor> inputs, outputs;
};

class Context {
public:
    virtual ~Context() = default;
    virtual Status SetExecuteStream(void* stream) = 0;
    virtual void* GetExecuteStream() const = 0;
    virtual Status SetAsyncTilingCopyStatus(bool enable) = 0;
    virtual bool GetAsyncTilingCopyStatus() const = 0;
};

class Operation {
public:
    virtual ~Operation() = default;
    virtual std::string GetName() const = 0;
    virtual Status InferShape(const SVector<TensorDesc>& inputs, SVector<TensorDesc>& outputs) const = 0;
    virtual uint32_t GetInputNum() const = 0;
    virtual uint32_t GetOutputNum() const = 0;
    virtual Status Setup(const VariantPack& tensors, uint64_t& workspace, Context* context) = 0;
    virtual Status Execute(const VariantPack& tensors, uint8_t* workspace, uint64_t size, Context* context) = 0;
};

class Utils {
public:
    static uint64_t GetTensorSize(const Tensor& tensor);
};

Status CreateContext(Context** context);
Status DestroyContext(Context* context);
Status DestroyOperation(Operation* operation);

template <class Parameters>
Status CreateOperation(const Parameters& parameters, Operation** operation);

}  // namespace atb
