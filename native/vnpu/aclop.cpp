// The older interface of single operators: descriptions, buffers, and one function that runs an operator by name.
#include <string.h>

#include <new>
#include <string>
#include <vector>

#include "aclop_attributes.h"
#include "bridge.h"
#include "error.h"
#include "handles.h"
#include "memory.h"
#include "stream.h"

extern "C" void* aclCreateTensorList(const void* const* members, uint64_t count);

namespace ga::vnpu {
namespace {

constexpr int32_t kUndefined = -1;  // dtype of an optional input that is left out

struct Description {
    int32_t dtype = 0, format = 0;
    std::vector<int64_t> dims;
    int32_t storage_format = kUndefined;
    std::vector<int64_t> storage_dims;
    bool on_host = false;
};

struct Buffer {
    void* data = nullptr;
    size_t size = 0;
};

// Small constants come in ordinary memory of the program. They are copied to memory that tensors may lie in: one piece per
// thread, overwritten by each call, because an operator here has ended when its call returns.
class Constants {
public:
    ~Constants() { drop(); }

    void begin(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        drop();
        size_ = 4096;
        while (size_ < bytes) size_ *= 2;
        data_ = static_cast<char*>(operator new(size_, std::align_val_t{kAlignment}));
        add_block(Block{data_, size_, kHost});
    }

    void* copy(const Buffer& buffer) {
        char* place = data_ + used_;
        memcpy(place, buffer.data, buffer.size);
        used_ += rounded(buffer.size);
        return place;
    }

    static size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

private:
    static constexpr size_t kAlignment = 64;

    void drop() {
        if (data_ == nullptr) return;
        remove_block(data_);
        operator delete(data_, std::align_val_t{kAlignment});
        data_ = nullptr;
    }

    char* data_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

Constants& constants() {
    static thread_local Constants mine;
    return mine;
}

// Descriptions and buffers of one side of a call, as tensor handles; null for what is left out. Owns the handles.
class Tensors {
public:
    ~Tensors() {
        if (list_ != nullptr) {
            destroy_handle(static_cast<const Handle*>(list_));  // with its members
        } else {
            for (const void* handle : handles_) destroy_handle(static_cast<const Handle*>(handle));
        }
    }

    bool add(const Description& description, const Buffer& buffer) {
        if (description.dtype == kUndefined) {
            handles_.push_back(nullptr);
            return true;
        }
        const bool stored = !description.storage_dims.empty();
        const auto& storage = stored ? description.storage_dims : description.dims;
        void* data = description.on_host && buffer.size != 0 ? constants().copy(buffer) : buffer.data;
        Tensor* made = make_tensor(description.dtype, static_cast<int32_t>(description.dims.size()), description.dims.data(),
                                   nullptr, 0, stored ? description.storage_format : description.format,
                                   static_cast<int32_t>(storage.size()), storage.data(), data);
        if (made == nullptr) return false;
        handles_.push_back(made);
        return true;
    }

    Argument argument() {
        list_ = aclCreateTensorList(handles_.data(), handles_.size());
        return Argument{'L', {list_}};
    }

    const std::vector<const void*>& handles() const { return handles_; }

private:
    std::vector<const void*> handles_;
    const void* list_ = nullptr;
};

struct Side {
    int32_t count;
    void* const* descriptions;
    void* const* buffers;

    Description& description(int32_t i) const { return *static_cast<Description*>(descriptions[i]); }
    const Buffer& buffer(int32_t i) const { return *static_cast<const Buffer*>(buffers[i]); }

    size_t bytes_on_host() const {
        size_t bytes = 0;
        for (int32_t i = 0; i < count; ++i) {
            if (description(i).on_host) bytes += Constants::rounded(buffer(i).size);
        }
        return bytes;
    }

    bool add_to(Tensors* tensors) const {
        for (int32_t i = 0; i < count; ++i) {
            if (!tensors->add(description(i), buffer(i))) return false;
        }
        return true;
    }
};

// One Python callable per operator gets the inputs, the outputs, the addresses of the outputs' handles if their shapes are
// read back, and the attributes (ops/aclop.py).
Status execute(const char* name, const Side& inputs, const Side& outputs, const Attributes* attributes, bool reads_shapes,
               void* stream) {
    if (defers(stream)) {
        return fail(kNotSupported, std::string("the aclop operator ") + name + " cannot be captured into a graph");
    }
    constants().begin(inputs.bytes_on_host());
    Tensors from, to;
    if (!inputs.add_to(&from) || !outputs.add_to(&to)) return kAclInvalidParameter;
    std::vector<int64_t> places;
    for (const void* handle : to.handles()) {
        if (reads_shapes) places.push_back(reinterpret_cast<int64_t>(handle));
    }
    Array* addresses = make_int_array(places.data(), places.size());
    if (addresses == nullptr) return kAclInvalidParameter;
    std::vector<Argument> arguments = {from.argument(), to.argument(), {'I', {addresses}}};
    static const Attributes none;
    const AttributeArguments kept(attributes != nullptr ? *attributes : none, &arguments);
    const Status status = call_named((std::string("aclop.") + name).c_str(), arguments.data(), arguments.size(), stream);
    destroy_handle(addresses);
    for (int32_t i = 0; reads_shapes && status == kOk && i < outputs.count; ++i) {
        const auto* tensor = static_cast<const Tensor*>(to.handles()[static_cast<size_t>(i)]);
        if (tensor != nullptr) outputs.description(i).dims.assign(tensor->dims, tensor->dims + tensor->rank);
    }
    return status;
}

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT void* aclCreateTensorDesc(int32_t dtype, int32_t rank, const int64_t* dims, int32_t format) {
    return new Description{dtype, format, std::vector<int64_t>(dims, dims + rank), kUndefined, {}, false};
}
GA_EXPORT void aclDestroyTensorDesc(const void* description) { delete static_cast<const Description*>(description); }

GA_EXPORT Status aclSetTensorShape(void* description, int32_t rank, const int64_t* dims) {
    static_cast<Description*>(description)->storage_dims.assign(dims, dims + rank);
    return kOk;
}
GA_EXPORT Status aclSetTensorFormat(void* description, int32_t format) {
    static_cast<Description*>(description)->storage_format = format;
    return kOk;
}
// 0 is the device; the other kinds are the host's, and differ in when a compiler would want the values.
GA_EXPORT Status aclSetTensorPlaceMent(void* description, int32_t kind) {
    static_cast<Description*>(description)->on_host = kind != 0;
    return kOk;
}
// Names are those of the operator's definition, and torch_npu gives them to some inputs only: position says the same.
GA_EXPORT void aclSetTensorDescName(void* /*description*/, const char* /*name*/) {}

GA_EXPORT int32_t aclGetTensorDescType(const void* description) { return static_cast<const Description*>(description)->dtype; }
GA_EXPORT int32_t aclGetTensorDescFormat(const void* description) {
    return static_cast<const Description*>(description)->format;
}
GA_EXPORT size_t aclGetTensorDescNumDims(const void* description) {
    return static_cast<const Description*>(description)->dims.size();
}
GA_EXPORT Status aclGetTensorDescDimV2(const void* description, size_t index, int64_t* size) {
    const auto& dims = static_cast<const Description*>(description)->dims;
    if (index >= dims.size()) return fail(kAclInvalidParameter, "a tensor description has no such dimension");
    *size = dims[index];
    return kOk;
}

GA_EXPORT void* aclCreateDataBuffer(void* data, size_t size) { return new Buffer{data, size}; }
GA_EXPORT Status aclDestroyDataBuffer(const void* buffer) {
    delete static_cast<const Buffer*>(buffer);
    return kOk;
}

GA_EXPORT Status aclopCompileAndExecute(const char* name, int32_t inputs, void* const* input_descriptions,
                                        void* const* input_buffers, int32_t outputs, void* const* output_descriptions,
                                        void* const* output_buffers, const void* attributes, int32_t /*engine*/,
                                        int32_t /*compile*/, const char* /*path*/, void* stream) {
    return execute(name, {inputs, input_descriptions, input_buffers}, {outputs, output_descriptions, output_buffers},
                   static_cast<const Attributes*>(attributes), false, stream);
}

// The same; the caller reads the shapes of outputs from their descriptions afterwards.
GA_EXPORT Status aclopCompileAndExecuteV2(const char* name, int32_t inputs, void* const* input_descriptions,
                                          void* const* input_buffers, int32_t outputs, void* const* output_descriptions,
                                          void* const* output_buffers, const void* attributes, int32_t /*engine*/,
                                          int32_t /*compile*/, const char* /*path*/, void* stream) {
    return execute(name, {inputs, input_descriptions, input_buffers}, {outputs, output_descriptions, output_buffers},
                   static_cast<const Attributes*>(attributes), true, stream);
}
