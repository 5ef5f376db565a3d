// Start, versions, options and the other small answers that torch_npu asks for.
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <regex>
#include <string>

#include "device.h"
#include "error.h"

namespace {

constexpr size_t kVersionBytes = 512;

std::mutex mutex;
std::map<int32_t, std::string> compile_options;
std::map<int32_t, int64_t> system_parameters;

std::string compile_option(int32_t option) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = compile_options.find(option);
    return found != compile_options.end() ? found->second : "disable";
}

}  // namespace

using namespace ga::vnpu;

// The configuration is a JSON file. Of its contents, only the default device means something here: torch_npu gives 0.
GA_EXPORT Status aclInit(const char* config) {
    std::ifstream file(config != nullptr ? config : "");
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    std::smatch found;
    if (std::regex_search(text, found, std::regex("\"default_device\"\\s*:\\s*\"(\\d{1,2})\""))) {
        set_default_device(std::stoi(found[1]));
    }
    return kOk;
}
GA_EXPORT Status aclFinalize() { return kOk; }
GA_EXPORT void aclAppLog(int32_t, const char*, const char*, uint32_t, const char*, ...) {}

GA_EXPORT Status aclsysGetVersionStr(char* /*package*/, char* version) {
    memcpy(version, machine().cann_version.c_str(), machine().cann_version.size() + 1);
    return kOk;
}

// The structure begins with the version's text; the numbers after it stay 0.
GA_EXPORT Status aclsysGetCANNVersion(int32_t /*package*/, char* version) {
    memset(version, 0, kVersionBytes);
    memcpy(version, machine().cann_version.data(), machine().cann_version.size());
    return kOk;
}

GA_EXPORT Status aclSetCompileopt(int32_t option, const char* value) {
    const std::lock_guard<std::mutex> lock(mutex);
    compile_options[option] = value;
    return kOk;
}

GA_EXPORT size_t aclGetCompileoptSize(int32_t option) { return compile_option(option).size() + 1; }

GA_EXPORT Status aclGetCompileopt(int32_t option, char* value, size_t room) {
    const std::string text = compile_option(option);
    if (text.size() + 1 > room) return fail(kAclInvalidParameter, "no room for the compile option");
    memcpy(value, text.c_str(), text.size() + 1);
    return kOk;
}

// Determinism and precision switches: kept and told back. The emulation is deterministic whatever they say.
GA_EXPORT Status aclrtSetSysParamOpt(int32_t option, int64_t value) {
    const std::lock_guard<std::mutex> lock(mutex);
    system_parameters[option] = value;
    return kOk;
}
GA_EXPORT Status aclrtCtxSetSysParamOpt(int32_t option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
GA_EXPORT Status aclrtGetSysParamOpt(int32_t option, int64_t* value) {
    const std::lock_guard<std::mutex> lock(mutex);
    *value = system_parameters[option];
    return kOk;
}

GA_EXPORT Status aclrtSetDeviceSatMode(int32_t mode) {
    if (mode == 0 || mode == 1) return kOk;
    return fail(kInvalidParameter, "unknown overflow mode " + std::to_string(mode));
}

// Time-outs of operators: none ever waits here.
GA_EXPORT Status aclrtSetOpWaitTimeout(uint32_t /*seconds*/) { return kOk; }
GA_EXPORT Status aclrtSetOpExecuteTimeOut(uint32_t /*seconds*/) { return kOk; }
GA_EXPORT Status aclrtSetOpExecuteTimeOutV2(uint64_t microseconds, uint64_t* actual) {
    *actual = microseconds;
    return kOk;
}

GA_EXPORT Status aclrtGetLastError(int32_t /*level*/) { return kOk; }
GA_EXPORT Status aclrtPeekAtLastError(int32_t /*level*/) { return kOk; }

// Profiling hooks: nobody listens. The device-side profiler (aclprof*) is not exported, so that it is refused.
GA_EXPORT uint64_t MsprofGetHashId(const char* text, size_t size) {
    uint64_t hash = 0xCBF29CE484222325ull;  // FNV-1a
    for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001B3ull;
    return hash;
}
GA_EXPORT uint64_t MsprofSysCycleTime() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}
GA_EXPORT Status MsprofRegisterCallback(uint32_t, void*) { return kOk; }
GA_EXPORT Status MsprofReportApi(uint32_t, const void*) { return kOk; }
GA_EXPORT Status MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return kOk; }
GA_EXPORT Status MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return kOk; }

// Linked by the wheel, but beyond an emulation of operators: kernels given as binaries, and dumps of models.
#define GA_NOT_EMULATED(name, what) \
    GA_EXPORT Status name() { return fail(kNotSupported, #name ": " what " not emulated by the virtual NPU"); }
GA_NOT_EMULATED(aclrtBinaryGetFunction, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(aclrtBinaryLoadFromData, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(aclrtGetFunctionAddr, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(rtDevBinaryRegister, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(rtFunctionRegister, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(rtGetC2cCtrlAddr, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(rtKernelLaunch, "kernels given as binaries (AscendC, Triton-Ascend) are")
GA_NOT_EMULATED(aclmdlInitDump, "dumps of models are")
GA_NOT_EMULATED(aclmdlSetDump, "dumps of models are")
GA_NOT_EMULATED(aclmdlFinalizeDump, "dumps of models are")
