// How members of a new communicator come by its root info: their leader sends it to them over the parent.
#include "members.h"

#include <string.h>

#include <algorithm>
#include <thread>

namespace ga::vnpu::hccl {
namespace {

struct Message {
    uint64_t id;
    RootInfo root;
};

Status invite(Communicator& parent, const std::vector<uint32_t>& ranks, uint64_t id, const RootInfo& root) {
    const Message message{id, root};
    for (const uint32_t member : ranks) {
        if (member == parent.rank()) continue;
        const Status code = parent.send(Kind::control, &message, sizeof message, kInt8, member);
        if (code != kOk) return code;
    }
    return kOk;
}

Status await_invitation(Communicator& parent, uint32_t leader, uint64_t id, RootInfo& root) {
    Message message{};
    const Status code = parent.receive(Kind::control, &message, sizeof message, kInt8, leader);
    if (code != kOk) return code;
    root = message.root;
    if (message.id == id) return kOk;
    return fail(kParameter, "HcclCreateSubCommConfig: rank " + std::to_string(parent.rank()) + " makes communicator " +
                                std::to_string(id) + " when its leader, rank " + std::to_string(leader) + ", makes " +
                                std::to_string(message.id));
}

Status check_members(const Communicator& parent, const std::vector<uint32_t>& ranks, uint32_t rank) {
    if (rank >= ranks.size() || ranks[rank] != parent.rank()) {
        return fail(kParameter, "HcclCreateSubCommConfig: rank " + std::to_string(parent.rank()) +
                                    " is not member " + std::to_string(rank) + " of the list it gives");
    }
    std::vector<uint32_t> sorted(ranks);
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end() || sorted.back() >= parent.ranks()) {
        return fail(kParameter, "HcclCreateSubCommConfig: the list names a rank twice, or one that does not exist");
    }
    return kOk;
}

}  // namespace

Status join_members(Communicator& parent, const std::vector<uint32_t>& ranks, uint64_t id, uint32_t rank,
                    const Settings& settings, CommunicatorPtr& out) {
    if (const Status code = check_members(parent, ranks, rank); code != kOk) return code;
    RootInfo root{};
    {
        const auto turn = parent.take_turn();
        Status code = kOk;
        if (rank == 0) {
            code = Segment::offer(root);
            if (code == kOk) code = invite(parent, ranks, id, root);
        } else {
            code = await_invitation(parent, ranks[0], id, root);
        }
        if (code != kOk) return code;
    }
    return Communicator::join(root, static_cast<uint32_t>(ranks.size()), rank, settings, out);
}

Status join_all(uint32_t devices, const Settings& settings, std::vector<CommunicatorPtr>& out) {
    RootInfo root{};
    if (const Status code = Segment::offer(root); code != kOk) return code;
    out.assign(devices, nullptr);
    std::vector<Status> codes(devices);
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < devices; ++rank) {
        threads.emplace_back([&, rank] { codes[rank] = Communicator::join(root, devices, rank, settings, out[rank]); });
    }
    for (std::thread& thread : threads) thread.join();
    const auto failed = std::find_if(codes.begin(), codes.end(), [](Status code) { return code != kOk; });
    return failed == codes.end() ? kOk : fail(*failed, "HcclCommInitAll: the communicators could not be made");
}

}  // namespace ga::vnpu::hccl
