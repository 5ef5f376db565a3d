// HCCL's entry points for making, asking and destroying communicators.
#include <string.h>

#include <algorithm>

#include "config.h"
#include "members.h"

using namespace ga::vnpu;
using namespace ga::vnpu::hccl;

namespace {

constexpr size_t kNameBytes = 128;

Status join(uint32_t ranks, const void* root_bytes, uint32_t rank, const void* config, HcclComm* out) {
    if (root_bytes == nullptr || out == nullptr) return fail(kParameter, "HCCL: the root info or the result is null");
    RootInfo root;
    memcpy(&root, root_bytes, sizeof root);
    CommunicatorPtr comm;
    const Status code = Communicator::join(root, ranks, rank, settings_from(config), comm);
    if (code == kOk) *out = add(comm);
    return code;
}

}  // namespace

GA_EXPORT Status HcclGetRootInfo(void* out) {
    if (out == nullptr) return fail(kParameter, "HcclGetRootInfo: no place for the root info");
    RootInfo root;
    const Status code = Segment::offer(root);
    if (code != kOk) return code;
    memset(out, 0, kRootInfoBytes);
    memcpy(out, &root, sizeof root);
    return kOk;
}

GA_EXPORT Status HcclCommInitRootInfo(uint32_t ranks, const void* root, uint32_t rank, HcclComm* comm) {
    return join(ranks, root, rank, nullptr, comm);
}

GA_EXPORT Status HcclCommInitRootInfoConfig(uint32_t ranks, const void* root, uint32_t rank, void* config,
                                            HcclComm* comm) {
    return join(ranks, root, rank, config, comm);
}

GA_EXPORT Status HcclCommInitAll(uint32_t devices, int32_t* /*numbers*/, HcclComm* comms) {
    if (comms == nullptr || devices == 0) return fail(kParameter, "HcclCommInitAll: no devices, or no place for them");
    std::vector<CommunicatorPtr> made;
    if (const Status code = join_all(devices, settings_from_environment(), made); code != kOk) return code;
    for (uint32_t rank = 0; rank < devices; ++rank) comms[rank] = add(made[rank]);
    return kOk;
}

// torch_npu then makes the communicator from a root info.
GA_EXPORT Status HcclCommInitClusterInfoConfig(const char* file, uint32_t /*rank*/, void* /*config*/,
                                               HcclComm* /*comm*/) {
    return fail(kUnsupported, std::string("HcclCommInitClusterInfoConfig: the rank table ") +
                                  (file != nullptr ? file : "that was given") +
                                  " describes machines and chips; the virtual NPU has neither");
}

GA_EXPORT Status HcclCreateSubCommConfig(HcclComm* parent_handle, uint32_t count, uint32_t* ranks, uint64_t id,
                                         uint32_t rank, void* config, HcclComm* out) {
    if (parent_handle == nullptr || ranks == nullptr || count == 0 || out == nullptr) {
        return fail(kParameter, "HcclCreateSubCommConfig: the parent, the ranks or the result are missing");
    }
    const CommunicatorPtr parent = find(*parent_handle);
    if (parent == nullptr) return kParameter;
    CommunicatorPtr comm;
    const std::vector<uint32_t> members(ranks, ranks + count);
    const Status code = join_members(*parent, members, id, rank, settings_from(config), comm);
    if (code == kOk) *out = add(comm);
    return code;
}

GA_EXPORT Status HcclCommDestroy(HcclComm handle) {
    const CommunicatorPtr found = find(handle);
    if (found == nullptr) return kParameter;
    if (found->inherited()) return kOk;  // the parent's seat is not the child's to give up
    if (const CommunicatorPtr comm = hccl::remove(handle); comm != nullptr) comm->leave();
    return kOk;
}

GA_EXPORT Status HcclGetCommName(HcclComm handle, char* name) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    if (name == nullptr) return fail(kParameter, "HcclGetCommName: no place for the name");
    memset(name, 0, kNameBytes);
    memcpy(name, comm->name().data(), std::min(comm->name().size(), kNameBytes - 1));
    return kOk;
}

// Tells of a failure that any rank met, also to threads that were not in a call when it came.
GA_EXPORT Status HcclGetCommAsyncError(HcclComm handle, Status* error) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    if (error == nullptr) return fail(kParameter, "HcclGetCommAsyncError: no place for the error");
    *error = comm->broken();
    return kOk;
}

GA_EXPORT const char* HcclGetErrorString(Status code) {
    switch (code) {
        case kOk: return "no error";
        case kParameter: return "invalid parameter";
        case kUnsupported: return "not supported";
        case kTimedOut: return "timed out";
        default: return "internal error";
    }
}

// torch_npu fills in those parts of the configuration structure whose number is below this one; 2 is the name.
GA_EXPORT uint32_t HcclGetCommConfigCapability() { return 3; }

// The only setting that torch_npu makes is whether reductions are deterministic, which they always are here.
GA_EXPORT Status HcclSetConfig(int32_t setting, int32_t /*value*/) {
    constexpr int32_t kDeterministic = 0;
    if (setting == kDeterministic) return kOk;
    return fail(kUnsupported, "HcclSetConfig: setting " + std::to_string(setting) + " is not known");
}

// For operators that join computation and communication, which get their communicator by name.
GA_EXPORT HcclComm ga_vnpu_hccl_find(const char* name) { return name != nullptr ? find_name(name) : nullptr; }

GA_EXPORT int32_t ga_vnpu_hccl_rank(HcclComm handle) {
    const CommunicatorPtr comm = find(handle);
    return comm != nullptr ? static_cast<int32_t>(comm->rank()) : -1;
}

GA_EXPORT int32_t ga_vnpu_hccl_size(HcclComm handle) {
    const CommunicatorPtr comm = find(handle);
    return comm != nullptr ? static_cast<int32_t>(comm->ranks()) : -1;
}
