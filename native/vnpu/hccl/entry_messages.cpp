// HCCL's entry points for messages between two ranks, and for groups.
#include "launch.h"

using namespace ga::vnpu;
using namespace ga::vnpu::hccl;

namespace {

// As torch_npu lays it out.
struct Item {
    int32_t kind;      // 0 send, 1 receive
    int32_t padding;
    void* buffer;
    uint64_t count;
    DataType dtype;
    uint32_t peer;
};
static_assert(sizeof(Item) == 32);

constexpr int32_t kSendItem = 0, kReceiveItem = 1;

Status check(const char* function, const Communicator& comm, const Item& item) {
    if (item.kind != kSendItem && item.kind != kReceiveItem) {
        return fail(kUnsupported, std::string(function) + ": item kind " + std::to_string(item.kind));
    }
    const std::string title = std::string(function) + ": ";
    if (bytes_of(item.dtype) == 0) return fail(kUnsupported, title + "there is no " + name_of(item.dtype));
    if (item.buffer == nullptr && item.count != 0) return fail(kParameter, title + "the buffer is null");
    if (item.peer < comm.ranks()) return kOk;
    return fail(kParameter, title + "rank " + std::to_string(item.peer) + " of " + std::to_string(comm.ranks()));
}

Status run(Communicator& comm, const Item& item) {
    return item.kind == kSendItem ? comm.send(Kind::user, item.buffer, item.count, item.dtype, item.peer)
                                  : comm.receive(Kind::user, item.buffer, item.count, item.dtype, item.peer);
}

// All items of one kind, in order.
Status launch_kind(const CommunicatorPtr& comm, void* stream, int32_t kind, const Item* items, uint32_t count) {
    std::vector<Item> chosen;
    for (uint32_t i = 0; i < count; ++i) {
        if (items[i].kind == kind) chosen.push_back(items[i]);
    }
    if (chosen.empty()) return kOk;
    const Order order = kind == kSendItem ? Order::sends_first : Order::as_given;
    return launch(comm, stream, order, [chosen](Communicator& mine) {
        for (const Item& item : chosen) {
            if (const Status code = run(mine, item); code != kOk) return code;
        }
        return kOk;
    });
}

Status launch_items(const char* function, const Item* items, uint32_t count, HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    if (items == nullptr && count != 0) return fail(kParameter, std::string(function) + ": the items are null");
    for (uint32_t i = 0; i < count; ++i) {
        if (const Status code = check(function, *comm, items[i]); code != kOk) return code;
    }
    const Status code = launch_kind(comm, stream, kSendItem, items, count);
    return code != kOk ? code : launch_kind(comm, stream, kReceiveItem, items, count);
}

}  // namespace

GA_EXPORT Status HcclSend(void* buffer, uint64_t count, DataType dtype, uint32_t to, HcclComm comm, void* stream) {
    const Item item{kSendItem, 0, buffer, count, dtype, to};
    return launch_items("HcclSend", &item, 1, comm, stream);
}

GA_EXPORT Status HcclRecv(void* buffer, uint64_t count, DataType dtype, uint32_t from, HcclComm comm, void* stream) {
    const Item item{kReceiveItem, 0, buffer, count, dtype, from};
    return launch_items("HcclRecv", &item, 1, comm, stream);
}

// Sends first, whatever the order of the items: ranks that exchange data may list their receives first.
GA_EXPORT Status HcclBatchSendRecv(void* items, uint32_t count, HcclComm comm, void* stream) {
    return launch_items("HcclBatchSendRecv", static_cast<const Item*>(items), count, comm, stream);
}

GA_EXPORT Status HcclGroupStart() { return begin_group(); }

GA_EXPORT Status HcclGroupEnd() { return end_group(); }
