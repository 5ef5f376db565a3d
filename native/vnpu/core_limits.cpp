// How many cores a stream or a device may use, which a program can limit. Nothing runs faster or slower for it here: the
// numbers are checked, kept and told back.
#include <array>
#include <map>
#include <mutex>
#include <string>

#include "device.h"
#include "error.h"
#include "graph.h"

namespace ga::vnpu {
namespace {

constexpr int kTypes = 2;  // cube cores, vector cores
using Limits = std::array<uint32_t, kTypes>;

std::mutex mutex;
std::map<int32_t, Limits> of_devices;
std::map<int32_t, Limits> of_streams;  // by the stream's number
thread_local int32_t stream_in_use = -1;

uint32_t cores(int32_t type) {
    return static_cast<uint32_t>(type == 0 ? machine().cube_cores : machine().vector_cores);
}

Limits all() { return {cores(0), cores(1)}; }

Status check(int32_t type, uint32_t value) {
    if (type < 0 || type >= kTypes) return fail(kInvalidParameter, "unknown kind of core " + std::to_string(type));
    if (value >= 1 && value <= cores(type)) return kOk;
    return fail(kInvalidParameter, "a limit of " + std::to_string(value) + " cores; the chip has " + std::to_string(cores(type)));
}

Status set(std::map<int32_t, Limits>& limits, int32_t key, int32_t type, uint32_t value) {
    if (const Status status = check(type, value); status != kOk) return status;
    const std::lock_guard<std::mutex> lock(mutex);
    limits.try_emplace(key, all()).first->second[static_cast<size_t>(type)] = value;
    return kOk;
}

// The limit in the first of the tables that has one.
Status get(int32_t stream, int32_t device, int32_t type, uint32_t* value) {
    if (const Status status = check(type, 1); status != kOk) return status;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto mine = of_streams.find(stream), shared = of_devices.find(device);
    const Limits limits = mine != of_streams.end() ? mine->second : shared != of_devices.end() ? shared->second : all();
    *value = limits[static_cast<size_t>(type)];
    return kOk;
}

void reset(std::map<int32_t, Limits>& limits, int32_t key) {
    const std::lock_guard<std::mutex> lock(mutex);
    limits.erase(key);
}

Status no_device() { return fail(kInvalidDevice, "this device does not exist"); }
Status no_stream() { return fail(kInvalidHandle, "this stream does not exist, or was destroyed"); }

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT Status aclrtSetDeviceResLimit(int32_t device, int32_t type, uint32_t value) {
    if (device < 0 || device >= machine().devices) return no_device();
    return set(of_devices, device, type, value);
}

GA_EXPORT Status aclrtGetDeviceResLimit(int32_t device, int32_t type, uint32_t* value) {
    if (device < 0 || device >= machine().devices) return no_device();
    return get(-1, device, type, value);
}

GA_EXPORT Status aclrtResetDeviceResLimit(int32_t device) {
    if (device < 0 || device >= machine().devices) return no_device();
    reset(of_devices, device);
    return kOk;
}

GA_EXPORT Status aclrtSetStreamResLimit(void* address, int32_t type, uint32_t value) {
    const Stream* stream = find_stream(address);
    return stream != nullptr ? set(of_streams, stream->id, type, value) : no_stream();
}

GA_EXPORT Status aclrtGetStreamResLimit(void* address, int32_t type, uint32_t* value) {
    const Stream* stream = find_stream(address);
    return stream != nullptr ? get(stream->id, stream->device, type, value) : no_stream();
}

GA_EXPORT Status aclrtResetStreamResLimit(void* address) {
    const Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    reset(of_streams, stream->id);
    return kOk;
}

// The limits that hold for what this thread launches next.
GA_EXPORT Status aclrtUseStreamResInCurrentThread(void* address) {
    const Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    stream_in_use = stream->id;
    return kOk;
}

GA_EXPORT Status aclrtUnuseStreamResInCurrentThread(void* address) {
    if (find_stream(address) == nullptr) return no_stream();
    stream_in_use = -1;
    return kOk;
}

GA_EXPORT Status aclrtGetResInCurrentThread(int32_t type, uint32_t* value) {
    return get(stream_in_use, current_device(), type, value);
}
