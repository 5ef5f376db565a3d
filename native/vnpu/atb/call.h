// One call of an operator: its arguments in order, run as one Python function.
#pragma once
#include <stdint.h>

#include <string>
#include <vector>

#include "../bridge.h"
#include "interface.h"

namespace ga::vnpu::atb_call {

constexpr int32_t kNd = 2;

// Where an operator reads a tensor: on the device, or (lengths) also on the host, which a graph then keeps as numbers. A
// tensor that may be in a blocked format is followed by its format: ATB passes such tensors with their memory's shape.
enum class Place { device, device_any_format, lengths };

// Plain copies of what the arguments say. Handles are made from them only while the operator runs: an operation may be
// destroyed when its thread ends, after the thread's store of handles is gone.
class Arguments {
public:
    explicit Arguments(const char* operator_name) : operator_(operator_name) {}
    void clear() { parts_.clear(); }
    void add(const Argument& argument) { parts_.push_back({argument, {}, {}}); }
    void absent(Place place);
    // Of ATB's C++ interface. `name` is for error texts.
    void tensor(const ::atb::Tensor& tensor, Place place, const char* name);
    // Of the C interface: a handle of aclCreateTensor, or null. Lengths are always on the host there.
    void handle(const void* address, Place place, const char* name);
    // Runs the operator; a failure is thrown, as a std::runtime_error with the text that explains it: torch_npu drops
    // the status of ATB's calls (op_plugin/utils/custom_functions/atb/AtbCommon.cpp, RunAtbCmdV2) or the reason.
    void run(void* stream) const;

private:
    struct Part {
        Argument value;                // of the kinds T and I, the pointer is filled when the operator runs
        Tensor tensor;                 // its kind is `free` if there is none
        std::vector<int64_t> lengths;
    };

    [[noreturn]] void refuse_argument(const char* name, const std::string& why) const;
    void add_tensor(Tensor tensor, Place place, const char* name);
    void host_lengths(int32_t dtype, const void* data, int64_t count, const char* name);

    const char* operator_;
    std::vector<Part> parts_;
};

inline Argument of(int64_t value) {
    Argument argument{'i', {nullptr}};
    argument.integer = value;
    return argument;
}
inline Argument of(int32_t value) { return of(static_cast<int64_t>(value)); }
inline Argument of(uint32_t value) { return of(static_cast<int64_t>(value)); }
inline Argument of(uint16_t value) { return of(static_cast<int64_t>(value)); }
inline Argument of(int8_t value) { return of(static_cast<int64_t>(value)); }
inline Argument of(bool value) {
    Argument argument = of(static_cast<int64_t>(value));
    argument.kind = 'b';
    return argument;
}
inline Argument of(double value) {
    Argument argument{'d', {nullptr}};
    argument.real = value;
    return argument;
}
inline Argument of(float value) { return of(static_cast<double>(value)); }

[[noreturn]] void refuse(const std::string& text);

}  // namespace ga::vnpu::atb_call
