// A list of communicators under a lock; a handle is the address of the communicator.
#include "registry.h"

#include <algorithm>

namespace ga::vnpu::hccl {
namespace {

std::mutex mutex;
std::vector<CommunicatorPtr>& all() {
    // Never destroyed: torch_npu gives communicators back while the process ends.
    static auto* list = new std::vector<CommunicatorPtr>;
    return *list;
}

std::vector<CommunicatorPtr>::iterator position(HcclComm handle) {
    return std::find_if(all().begin(), all().end(), [handle](const auto& comm) { return comm.get() == handle; });
}

}  // namespace

HcclComm add(const CommunicatorPtr& comm) {
    const std::lock_guard<std::mutex> lock(mutex);
    all().push_back(comm);
    return comm.get();
}

CommunicatorPtr find(HcclComm handle) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (const auto found = position(handle); found != all().end()) return *found;
    }
    set_error("HCCL: this communicator does not exist, or was destroyed");
    return nullptr;
}

HcclComm find_name(const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found =
        std::find_if(all().rbegin(), all().rend(), [&name](const auto& comm) { return comm->name() == name; });
    return found != all().rend() ? found->get() : nullptr;
}

CommunicatorPtr remove(HcclComm handle) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = position(handle);
    if (found == all().end()) return nullptr;
    const CommunicatorPtr comm = *found;
    all().erase(found);
    return comm;
}

}  // namespace ga::vnpu::hccl
