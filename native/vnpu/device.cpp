// Devices and contexts of the runtime.
#include "device.h"

#include <string.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "error.h"
#include "memory.h"

namespace ga::vnpu {
namespace {

thread_local int32_t device_of_thread = -1;
std::atomic<int32_t> default_device{-1};
std::array<bool, kMaxDevices> active{};
std::array<char, kMaxDevices> contexts{};  // a context is an address, one per device

bool exists(int64_t device) { return device >= 0 && device < machine().devices; }

Status no_device(int64_t device) {
    return fail(kInvalidDevice, "device " + std::to_string(device) + " does not exist: there are " +
                                    std::to_string(machine().devices) + " virtual devices");
}

struct Fact {
    int32_t attribute;
    int64_t Machine::*value;
};

constexpr Fact kFacts[] = {
    {1, &Machine::ai_cpus},         {101, &Machine::cube_cores}, {102, &Machine::cube_cores},
    {201, &Machine::vector_cores},  {301, &Machine::memory},     {302, &Machine::l2_bytes},
};

}  // namespace

Machine& machine() {
    static Machine one;
    return one;
}

int32_t current_device() { return device_of_thread >= 0 ? device_of_thread : default_device.load(); }

void set_default_device(int32_t device) {
    if (exists(device)) default_device = device;
}

}  // namespace ga::vnpu

using namespace ga::vnpu;

// Called by the loader, once. Strings are copied.
GA_EXPORT void ga_vnpu_configure(const char* soc, const char* cann_version, int32_t devices, int64_t memory,
                                 int64_t cube_cores, int64_t vector_cores, int64_t l2_bytes, int64_t ai_cpus,
                                 int32_t bfloat16, int32_t inf_nan) {
    machine() = Machine{soc, cann_version, devices, memory, cube_cores, vector_cores, l2_bytes, ai_cpus,
                        bfloat16 != 0, inf_nan != 0};
}

GA_EXPORT const char* aclrtGetSocName() { return machine().soc.c_str(); }

GA_EXPORT Status aclrtGetDeviceCount(uint32_t* count) {
    *count = static_cast<uint32_t>(machine().devices);
    return kOk;
}

GA_EXPORT Status aclrtSetDevice(int32_t device) {
    if (!exists(device)) return no_device(device);
    device_of_thread = device;
    active[static_cast<size_t>(device)] = true;
    return kOk;
}

GA_EXPORT Status aclrtResetDevice(int32_t device) {
    if (!exists(device)) return no_device(device);
    active[static_cast<size_t>(device)] = false;
    return kOk;
}

GA_EXPORT Status aclrtGetDevice(int32_t* device) {
    if (current_device() < 0) return fail(kNoContext, "no device is set in this thread");
    *device = current_device();
    return kOk;
}

GA_EXPORT Status aclrtGetCurrentContext(void** context) {
    if (current_device() < 0) return fail(kNoContext, "no device is set in this thread");
    *context = &contexts[static_cast<size_t>(current_device())];
    return kOk;
}

GA_EXPORT Status aclrtSetCurrentContext(void* context) {
    const auto index = static_cast<const char*>(context) - contexts.data();
    if (!exists(index)) return fail(kNoContext, "this is no context of a virtual device");
    return aclrtSetDevice(static_cast<int32_t>(index));
}

GA_EXPORT Status aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* is_active) {
    if (!exists(device)) return no_device(device);
    if (flags != nullptr) *flags = 0;
    *is_active = active[static_cast<size_t>(device)] ? 1 : 0;
    return kOk;
}

GA_EXPORT Status aclrtDeviceCanAccessPeer(int32_t* can, int32_t device, int32_t peer) {
    if (!exists(device) || !exists(peer)) return no_device(exists(device) ? peer : device);
    *can = device != peer ? 1 : 0;
    return kOk;
}

GA_EXPORT Status aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t /*flags*/) {
    return exists(peer) ? kOk : no_device(peer);
}

GA_EXPORT Status aclrtDeviceGetBareTgid(int32_t* process) {
    *process = getpid();
    return kOk;
}

GA_EXPORT Status aclGetDeviceCapability(uint32_t device, int32_t kind, int64_t* value) {
    if (!exists(device)) return no_device(device);
    switch (kind) {
        case 0: *value = machine().cube_cores; return kOk;
        case 1: *value = machine().vector_cores; return kOk;
        case 2: *value = machine().l2_bytes; return kOk;
        default: return fail(kAclInvalidParameter, "unknown device capability " + std::to_string(kind));
    }
}

// An attribute that is not known is an error: a wrong 0 would be believed.
GA_EXPORT Status aclrtGetDeviceInfo(uint32_t device, int32_t attribute, int64_t* value) {
    if (!exists(device)) return no_device(device);
    for (const Fact& fact : kFacts) {
        if (fact.attribute != attribute) continue;
        *value = machine().*fact.value;
        return kOk;
    }
    return fail(kInvalidParameter, "device attribute " + std::to_string(attribute) + " is not emulated");
}

GA_EXPORT Status aclrtGetDeviceUtilizationRate(int32_t device, int32_t* rates) {
    if (!exists(device)) return no_device(device);
    for (int i = 0; i < 4; ++i) rates[i] = 0;  // nothing runs between two calls
    return kOk;
}

GA_EXPORT Status aclGetCannAttribute(int32_t attribute, int32_t* value) {
    switch (attribute) {
        case 0: *value = machine().inf_nan ? 1 : 0; return kOk;
        case 1: *value = machine().bfloat16 ? 1 : 0; return kOk;
        case 2: *value = 0; return kOk;  // nothing is compiled just in time
        default: return fail(kAclInvalidParameter, "unknown CANN attribute " + std::to_string(attribute));
    }
}

GA_EXPORT Status aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t* logic) {
    if (!exists(user)) return no_device(user);
    *logic = user;
    return kOk;
}
