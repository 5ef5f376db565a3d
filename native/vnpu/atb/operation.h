// The operations that libop_plugin_atb.so holds: made from a parameter structure, or by the first phase of a C function.
#pragma once
#include "call.h"
#include "operators.h"

namespace ga::vnpu::atb_call {

// The stream that this thread gave the context last. torch_npu shares one context between threads and sets its stream
// before each call, so a stream kept in the context itself could be another thread's.
void* stream_of(const ::atb::Context* context);

// What both kinds of operation answer: no memory of their own, and only the stream is taken in the first phase, which runs
// in the thread that has set it.
class PlainOperation : public ::atb::Operation {
public:
    explicit PlainOperation(const char* name) : name_(name) {}

    std::string GetName() const override { return name_; }
    ::atb::Status InferShape(const ::atb::SVector<::atb::TensorDesc>& inputs,
                             ::atb::SVector<::atb::TensorDesc>& outputs) const override;
    ::atb::Status Setup(const ::atb::VariantPack& tensors, uint64_t& workspace, ::atb::Context* context) override;

protected:
    const char* name_;
    void* stream_ = nullptr;
};

// Keeps a copy of its parameters, as the description made from them: torch_npu runs it many times.
class ParameterOperation final : public PlainOperation {
public:
    explicit ParameterOperation(Description description);
    uint32_t GetInputNum() const override { return inputs_; }
    uint32_t GetOutputNum() const override { return static_cast<uint32_t>(description_.outputs); }
    ::atb::Status Execute(const ::atb::VariantPack& tensors, uint8_t* workspace, uint64_t size,
                          ::atb::Context* context) override;

private:
    void check_counts(const ::atb::VariantPack& tensors) const;

    Description description_;
    uint32_t inputs_ = 0;
};

// Holds the arguments of a C function between its two phases; the same one is used again for the next call.
class FunctionOperation final : public PlainOperation {
public:
    explicit FunctionOperation(const char* name) : PlainOperation(name), arguments_(name) {}
    uint32_t GetInputNum() const override { return 0; }
    uint32_t GetOutputNum() const override { return 0; }
    ::atb::Status Execute(const ::atb::VariantPack& tensors, uint8_t* workspace, uint64_t size,
                          ::atb::Context* context) override;
    // Begins a new call.
    Arguments& arguments(const ::atb::Context* context);
    void run() const { arguments_.run(stream_); }

private:
    Arguments arguments_;
};

}  // namespace ga::vnpu::atb_call
