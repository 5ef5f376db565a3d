// The older interface of single operators: descriptors, buffers, attributes, and one function that runs an operator by name.
#include <string.h>

#include <string>
#include <vector>

#include "bridge.h"
#include "error.h"
#include "handles.h"

namespace ga::vnpu {
namespace {

struct Description {
    int32_t dtype = 0, format = 0;
    std::vector<int64_t> dims;
    int32_t storage_format = -1;
    std::vector<int64_t> storage_dims;
};

struct Buffer {
    void* data = nullptr;
    size_t size = 0;
};

struct Attributes {};

// The operators of this interface that the emulation has; torch_npu uses them to change formats and types.
bool known(const std::string& name) { return name == "Identity" || name == "TransData" || name == "Cast"; }

Tensor* tensor_of(const Description& description, const Buffer& buffer) {
    const bool stored = !description.storage_dims.empty();
    const auto& storage = stored ? description.storage_dims : description.dims;
    return make_tensor(description.dtype, static_cast<int32_t>(description.dims.size()), description.dims.data(), nullptr, 0,
                       stored ? description.storage_format : description.format, static_cast<int32_t>(storage.size()),
                       storage.data(), buffer.data);
}

Status execute(const char* name, int32_t inputs, void* const* input_descriptions, void* const* input_buffers,
               int32_t outputs, void* const* output_descriptions, void* const* output_buffers, void* stream) {
    if (!known(name) || inputs < 1 || outputs != 1) {
        return fail(kAclOperatorNotFound, std::string("the aclop operator ") + name +
                                              " is not emulated: the virtual NPU has Identity, TransData and Cast");
    }
    Tensor* from = tensor_of(*static_cast<Description*>(input_descriptions[0]), *static_cast<Buffer*>(input_buffers[0]));
    Tensor* to = tensor_of(*static_cast<Description*>(output_descriptions[0]), *static_cast<Buffer*>(output_buffers[0]));
    if (from == nullptr || to == nullptr) return kAclInvalidParameter;
    Argument arguments[2] = {{'T', {from}}, {'T', {to}}};
    const Status status = call_named((std::string("aclop.") + name).c_str(), arguments, 2, stream);
    destroy_handle(from);
    destroy_handle(to);
    return status;
}

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT void* aclCreateTensorDesc(int32_t dtype, int32_t rank, const int64_t* dims, int32_t format) {
    return new Description{dtype, format, std::vector<int64_t>(dims, dims + rank), -1, {}};
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
GA_EXPORT Status aclSetTensorPlaceMent(void* /*description*/, int32_t /*kind*/) { return kOk; }
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

// Attributes are taken and not used: none of the three operators has one that changes its result.
GA_EXPORT void* aclopCreateAttr() { return new Attributes; }
GA_EXPORT void aclopDestroyAttr(const void* attributes) { delete static_cast<const Attributes*>(attributes); }
#define GA_ATTRIBUTE(name, ...) \
    GA_EXPORT Status name(__VA_ARGS__) { return kOk; }
GA_ATTRIBUTE(aclopSetAttrBool, void*, const char*, uint8_t)
GA_ATTRIBUTE(aclopSetAttrDataType, void*, const char*, int32_t)
GA_ATTRIBUTE(aclopSetAttrFloat, void*, const char*, float)
GA_ATTRIBUTE(aclopSetAttrInt, void*, const char*, int64_t)
GA_ATTRIBUTE(aclopSetAttrString, void*, const char*, const char*)
GA_ATTRIBUTE(aclopSetAttrListBool, void*, const char*, int32_t, const uint8_t*)
GA_ATTRIBUTE(aclopSetAttrListFloat, void*, const char*, int32_t, const float*)
GA_ATTRIBUTE(aclopSetAttrListInt, void*, const char*, int32_t, const int64_t*)
GA_ATTRIBUTE(aclopSetAttrListListInt, void*, const char*, int32_t, const int32_t*, const int64_t* const*)

GA_EXPORT Status aclopCompileAndExecute(const char* name, int32_t inputs, void* const* input_descriptions,
                                        void* const* input_buffers, int32_t outputs, void* const* output_descriptions,
                                        void* const* output_buffers, const void* /*attributes*/, int32_t /*engine*/,
                                        int32_t /*compile*/, const char* /*path*/, void* stream) {
    return execute(name, inputs, input_descriptions, input_buffers, outputs, output_descriptions, output_buffers, stream);
}

GA_EXPORT Status aclopCompileAndExecuteV2(const char* name, int32_t inputs, void* const* input_descriptions,
                                          void* const* input_buffers, int32_t outputs, void* const* output_descriptions,
                                          void* const* output_buffers, const void* /*attributes*/, int32_t /*engine*/,
                                          int32_t /*compile*/, const char* /*path*/, void* stream) {
    return execute(name, inputs, input_descriptions, input_buffers, outputs, output_descriptions, output_buffers, stream);
}
