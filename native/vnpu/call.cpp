// The two phases of an operator call. Phase one keeps the raw arguments, phase two decodes and runs them: only then is the
// stream known, and with it whether the call is to be recorded.
#include <string.h>

#include <string>
#include <vector>

#include "bridge.h"
#include "error.h"
#include "signature.h"

namespace ga::vnpu {
namespace {

struct Executor {
    size_t index = 0;
    std::vector<uint64_t> words;
};

thread_local std::vector<Executor*> spare;  // executors that ran, to be used again

Executor* take() {
    if (spare.empty()) return new Executor;
    Executor* executor = spare.back();
    spare.pop_back();
    return executor;
}

Status unknown(const std::string& name) {
    return fail(kKernelNotFound, "aclnn" + name + " is not emulated: its signature is not known, and is not guessed");
}

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

// Every aclnnXGetWorkspaceSize comes here from its stub, with the function's index and the words of its arguments:
// the integer registers, the float registers, then the address of the first argument on the stack.
extern "C" __attribute__((visibility("hidden"))) Status ga_vnpu_phase_one(int32_t index, const uint64_t* registers) {
    const Signature& signature = signatures()[static_cast<size_t>(index)];
    if (!signature.known) return unknown(signature.name);
    const uint64_t* stack = reinterpret_cast<const uint64_t*>(registers[kRegisterWords]);
    Executor* executor = take();
    executor->index = static_cast<size_t>(index);
    executor->words.assign(registers, registers + kRegisterWords);
    executor->words.insert(executor->words.end(), stack, stack + signature.stack_words);
    auto* workspace = reinterpret_cast<uint64_t*>(executor->words[static_cast<size_t>(signature.workspace.word)]);
    auto** result = reinterpret_cast<Executor**>(executor->words[static_cast<size_t>(signature.executor.word)]);
    *workspace = 0;
    *result = executor;
    return kOk;
}

// Every aclnnX comes here.
extern "C" __attribute__((visibility("hidden"))) Status ga_vnpu_phase_two(void* /*workspace*/, uint64_t /*size*/, void* address, void* stream) {
    Executor* executor = static_cast<Executor*>(address);
    if (executor == nullptr) return fail(kNullArgument, "an operator was run without its first phase");
    const Signature& signature = signatures()[executor->index];
    const Status status = call_operator(executor->index, signature, executor->words.data(), stream);
    spare.push_back(executor);
    return status;
}

// torch_npu drops the executor when it only asked for the size of a workspace.
GA_EXPORT Status aclDestroyAclOpExecutor(void* address) {
    if (address == nullptr) return fail(kNullArgument, "no executor");
    spare.push_back(static_cast<Executor*>(address));
    return kOk;
}
