// ATB's contexts and operations, and the C++ symbols that libop_plugin_atb.so is linked with.
#include "operation.h"

#include <unordered_map>

namespace ga::vnpu::atb_call {
namespace {

std::unordered_map<const ::atb::Context*, void*>& streams() {
    static thread_local std::unordered_map<const ::atb::Context*, void*> of_this_thread;
    return of_this_thread;
}

class StreamContext final : public ::atb::Context {
public:
    ::atb::Status SetExecuteStream(void* stream) override {
        streams()[this] = stream;
        return kOk;
    }
    void* GetExecuteStream() const override { return stream_of(this); }
    // Tiling data is copied by nobody here: the answer stays no.
    ::atb::Status SetAsyncTilingCopyStatus(bool enable) override {
        return enable ? fail(kNotSupported, "atb::Context: asynchronous tiling copies are not emulated") : kOk;
    }
    bool GetAsyncTilingCopyStatus() const override { return false; }
};

std::string text_of(const Field& field) {
    const bool real = field.value.kind == 'd';
    return std::string(field.name) + " = " + (real ? std::to_string(field.value.real) : std::to_string(field.value.integer));
}

}  // namespace

void* stream_of(const ::atb::Context* context) {
    const auto found = streams().find(context);
    return found == streams().end() ? nullptr : found->second;
}

::atb::Status PlainOperation::InferShape(const ::atb::SVector<::atb::TensorDesc>&,
                                         ::atb::SVector<::atb::TensorDesc>&) const {
    return fail(kNotSupported, std::string(name_) + ": InferShape is not emulated; torch_npu does not call it");
}

::atb::Status PlainOperation::Setup(const ::atb::VariantPack&, uint64_t& workspace, ::atb::Context* context) {
    workspace = 0;
    stream_ = stream_of(context);
    return kOk;
}

ParameterOperation::ParameterOperation(Description description)
    : PlainOperation(description.name), description_(std::move(description)) {
    for (const Input& input : description_.inputs) inputs_ += input.given;
}

void ParameterOperation::check_counts(const ::atb::VariantPack& tensors) const {
    if (tensors.inputs.size == inputs_ && tensors.outputs.size == description_.outputs) return;
    std::string text = std::string(name_) + ": called with " + std::to_string(tensors.inputs.size) + " inputs and " +
                       std::to_string(tensors.outputs.size) + " outputs; these parameters need";
    for (const Input& input : description_.inputs) {
        if (input.given) text += std::string(" ") + input.name;
    }
    text += " and " + std::to_string(description_.outputs) + " outputs (";
    const char* between = "";
    for (const Field& field : description_.fields) {
        text += between + text_of(field);
        between = ", ";
    }
    refuse(text + ")");
}

::atb::Status ParameterOperation::Execute(const ::atb::VariantPack& tensors, uint8_t*, uint64_t, ::atb::Context*) {
    check_counts(tensors);
    Arguments arguments(name_);
    size_t next = 0;
    for (const Input& input : description_.inputs) {
        if (input.given) {
            arguments.tensor(tensors.inputs[next++], input.place, input.name);
        } else {
            arguments.absent(input.place);
        }
    }
    for (const Field& field : description_.fields) arguments.add(field.value);
    for (size_t i = 0; i < description_.outputs; ++i) {
        ::atb::Tensor out = tensors.outputs[i];
        out.desc.format = kNd;  // the inputs tell the format of what is updated in place
        arguments.tensor(out, Place::device, "an output");
    }
    arguments.run(stream_);
    return kOk;
}

::atb::Status FunctionOperation::Execute(const ::atb::VariantPack&, uint8_t*, uint64_t, ::atb::Context*) {
    run();
    return kOk;
}

Arguments& FunctionOperation::arguments(const ::atb::Context* context) {
    stream_ = stream_of(context);
    arguments_.clear();
    return arguments_;
}

}  // namespace ga::vnpu::atb_call

namespace atb {

using ga::vnpu::atb_call::ParameterOperation;

Status CreateContext(Context** context) {
    *context = new ga::vnpu::atb_call::StreamContext;
    return ga::vnpu::kOk;
}

Status DestroyContext(Context* context) {
    delete context;
    return ga::vnpu::kOk;
}

Status DestroyOperation(Operation* operation) {
    delete operation;
    return ga::vnpu::kOk;
}

uint64_t Utils::GetTensorSize(const Tensor& tensor) {
    uint64_t bytes = static_cast<uint64_t>(ga::vnpu::item_size(tensor.desc.dtype));
    for (uint64_t i = 0; i < tensor.desc.rank; ++i) bytes *= static_cast<uint64_t>(tensor.desc.dims[i]);
    return bytes;
}

template <class Parameters>
Status CreateOperation(const Parameters& parameters, Operation** operation) {
    *operation = new ParameterOperation(ga::vnpu::atb_call::describe(parameters));
    return ga::vnpu::kOk;
}

template Status CreateOperation(const infer::LinearParam&, Operation**);
template Status CreateOperation(const infer::ElewiseParam&, Operation**);
template Status CreateOperation(const infer::RmsNormParam&, Operation**);
template Status CreateOperation(const infer::GroupTopkParam&, Operation**);
template Status CreateOperation(const infer::RopeParam&, Operation**);
template Status CreateOperation(const infer::ReshapeAndCacheParam&, Operation**);
template Status CreateOperation(const infer::PagedAttentionParam&, Operation**);
template Status CreateOperation(const infer::SelfAttentionParam&, Operation**);

}  // namespace atb
