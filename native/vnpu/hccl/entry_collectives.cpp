// HCCL's entry points for collectives.
#include <string.h>

#include "collectives.h"
#include "launch.h"
#include "reduce.h"

using namespace ga::vnpu;
using namespace ga::vnpu::hccl;

namespace {

constexpr uint64_t kMostElements = uint64_t{1} << 46;

Status check_buffer(const char* function, const void* buffer, uint64_t count, DataType dtype) {
    if (bytes_of(dtype) == 0) return fail(kUnsupported, std::string(function) + ": there is no " + name_of(dtype));
    if (count > kMostElements) return fail(kParameter, std::string(function) + ": count " + std::to_string(count));
    if (buffer == nullptr && count != 0) return fail(kParameter, std::string(function) + ": a buffer is null");
    return kOk;
}

Status check_reduction(const char* function, DataType dtype, Reduction reduction) {
    if (reducer(dtype, reduction) != nullptr) return kOk;
    return fail(kUnsupported, std::string(function) + ": " + name_of_reduction(reduction) + " of " + name_of(dtype) +
                                  " is not supported");
}

Status check_root(const char* function, const Communicator& comm, uint32_t root) {
    if (root < comm.ranks()) return kOk;
    return fail(kParameter, std::string(function) + ": root " + std::to_string(root) + " of " +
                                std::to_string(comm.ranks()) + " ranks");
}

Status check(const char* function, const Buffers& data) {
    const Status code = check_buffer(function, data.send, data.count, data.dtype);
    return code != kOk ? code : check_buffer(function, data.receive, data.count, data.dtype);
}

// Copies the caller's arrays, which need not outlive the call.
Status parts_of(const char* function, const void* counts, const void* offsets, uint32_t ranks, Parts& parts) {
    if (counts == nullptr || offsets == nullptr) return fail(kParameter, std::string(function) + ": an array is null");
    const auto* first = static_cast<const uint64_t*>(counts);
    const auto* where = static_cast<const uint64_t*>(offsets);
    parts.counts.assign(first, first + ranks);
    parts.offsets.assign(where, where + ranks);
    for (const uint64_t count : parts.counts) {
        if (count > kMostElements) return fail(kParameter, std::string(function) + ": count " + std::to_string(count));
    }
    return kOk;
}

// The count that the caller gives apart from the table, for its own part, must be that of the table.
Status check_own_part(const char* function, const Communicator& comm, uint64_t count, const Parts& parts) {
    const uint64_t own = parts.counts[comm.rank()];
    if (own == count) return kOk;
    return fail(kParameter, std::string(function) + ": rank " + std::to_string(comm.rank()) + " has " +
                                std::to_string(count) + " elements, but the counts say " + std::to_string(own));
}

}  // namespace

GA_EXPORT Status HcclAllReduce(void* send, void* receive, uint64_t count, DataType dtype, Reduction reduction,
                               HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{send, receive, count, dtype};
    Status code = check("HcclAllReduce", data);
    if (code == kOk) code = check_reduction("HcclAllReduce", dtype, reduction);
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return all_reduce(mine, data, reduction); });
}

GA_EXPORT Status HcclReduce(void* send, void* receive, uint64_t count, DataType dtype, Reduction reduction,
                            uint32_t root, HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const bool is_root = comm->rank() == root;
    const Buffers data{send, receive, count, dtype};
    Status code = check_buffer("HcclReduce", send, count, dtype);
    if (code == kOk && is_root) code = check_buffer("HcclReduce", receive, count, dtype);
    if (code == kOk) code = check_reduction("HcclReduce", dtype, reduction);
    if (code == kOk) code = check_root("HcclReduce", *comm, root);
    if (code != kOk) return code;
    return launch_collective(comm, stream,
                             [=](Communicator& mine) { return reduce_to(mine, data, reduction, root); });
}

GA_EXPORT Status HcclBroadcast(void* buffer, uint64_t count, DataType dtype, uint32_t root, HcclComm handle,
                               void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{buffer, buffer, count, dtype};
    Status code = check("HcclBroadcast", data);
    if (code == kOk) code = check_root("HcclBroadcast", *comm, root);
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return broadcast(mine, data, root); });
}

GA_EXPORT Status HcclAllGather(void* send, void* receive, uint64_t count, DataType dtype, HcclComm handle,
                               void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{send, receive, count, dtype};
    if (const Status code = check("HcclAllGather", data); code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return all_gather(mine, data); });
}

GA_EXPORT Status HcclAllGatherV(const void* send, uint64_t count, void* receive, const void* counts,
                                const void* offsets, DataType dtype, HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    Parts parts;
    const Buffers data{send, receive, count, dtype};
    Status code = check_buffer("HcclAllGatherV", send, count, dtype);
    if (code == kOk) code = parts_of("HcclAllGatherV", counts, offsets, comm->ranks(), parts);
    if (code == kOk) code = check_own_part("HcclAllGatherV", *comm, count, parts);
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return all_gather_v(mine, data, parts); });
}

GA_EXPORT Status HcclReduceScatter(void* send, void* receive, uint64_t count, DataType dtype, Reduction reduction,
                                   HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{send, receive, count, dtype};
    Status code = check("HcclReduceScatter", data);
    if (code == kOk) code = check_reduction("HcclReduceScatter", dtype, reduction);
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return reduce_scatter(mine, data, reduction); });
}

GA_EXPORT Status HcclReduceScatterV(const void* send, const void* counts, const void* offsets, void* receive,
                                    uint64_t count, DataType dtype, Reduction reduction, HcclComm handle,
                                    void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    Parts parts;
    const Buffers data{send, receive, count, dtype};
    Status code = check_buffer("HcclReduceScatterV", receive, count, dtype);
    if (code == kOk) code = check_reduction("HcclReduceScatterV", dtype, reduction);
    if (code == kOk) code = parts_of("HcclReduceScatterV", counts, offsets, comm->ranks(), parts);
    if (code == kOk) code = check_own_part("HcclReduceScatterV", *comm, count, parts);
    if (code != kOk) return code;
    return launch_collective(comm, stream,
                             [=](Communicator& mine) { return reduce_scatter_v(mine, data, parts, reduction); });
}

GA_EXPORT Status HcclScatter(void* send, void* receive, uint64_t count, DataType dtype, uint32_t root, HcclComm handle,
                             void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{send, receive, count, dtype};
    Status code = check_buffer("HcclScatter", receive, count, dtype);
    if (code == kOk && comm->rank() == root) code = check_buffer("HcclScatter", send, count, dtype);
    if (code == kOk) code = check_root("HcclScatter", *comm, root);
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return scatter(mine, data, root); });
}

GA_EXPORT Status HcclAlltoAll(const void* send, uint64_t send_count, DataType send_type, void* receive,
                              uint64_t receive_count, DataType receive_type, HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    const Buffers data{send, receive, send_count, send_type};
    Status code = check("HcclAlltoAll", data);
    if (code == kOk && (send_count != receive_count || send_type != receive_type)) {
        code = fail(kParameter, "HcclAlltoAll: sends and receives must be alike, not " + std::to_string(send_count) +
                                    " of " + name_of(send_type) + " and " + std::to_string(receive_count) + " of " +
                                    name_of(receive_type));
    }
    if (code != kOk) return code;
    return launch_collective(comm, stream, [=](Communicator& mine) { return all_to_all(mine, data); });
}

GA_EXPORT Status HcclAlltoAllV(const void* send, const void* send_counts, const void* send_offsets, DataType send_type,
                               void* receive, const void* receive_counts, const void* receive_offsets,
                               DataType receive_type, HcclComm handle, void* stream) {
    const CommunicatorPtr comm = find(handle);
    if (comm == nullptr) return kParameter;
    Parts sends, receives;
    const Buffers data{send, receive, 0, send_type};
    Status code = check("HcclAlltoAllV", data);
    if (code == kOk && send_type != receive_type) {
        code = fail(kParameter, "HcclAlltoAllV: sends " + name_of(send_type) + ", receives " + name_of(receive_type));
    }
    if (code == kOk) code = parts_of("HcclAlltoAllV", send_counts, send_offsets, comm->ranks(), sends);
    if (code == kOk) code = parts_of("HcclAlltoAllV", receive_counts, receive_offsets, comm->ranks(), receives);
    if (code != kOk) return code;
    return launch_collective(comm, stream,
                             [=](Communicator& mine) { return all_to_all_v(mine, data, sends, receives); });
}
