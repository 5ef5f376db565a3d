// Communicators made of some ranks of another one, and of all devices of one process.
#pragma once
#include <vector>

#include "registry.h"

namespace ga::vnpu::hccl {

// `ranks` are the members' ranks in the parent; `id` is the same for all members; the first member leads.
Status join_members(Communicator& parent, const std::vector<uint32_t>& ranks, uint64_t id, uint32_t rank,
                    const Settings& settings, CommunicatorPtr& out);

// One communicator per device, all in this process.
Status join_all(uint32_t devices, const Settings& settings, std::vector<CommunicatorPtr>& out);

}  // namespace ga::vnpu::hccl
