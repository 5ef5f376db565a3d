// Collectives in which ranks have different counts. They begin with a round in which all show their tables of counts,
// so that every rank knows how many rounds there will be, and sees whether the tables fit.
#include <string.h>

#include <algorithm>

#include "collectives.h"
#include "reduce.h"

namespace ga::vnpu::hccl {
namespace {

using Table = std::vector<uint64_t>;

void copy(void* to, const void* from, uint64_t bytes) {
    if (bytes != 0 && to != from) memmove(to, from, bytes);
}

// The stretch of one rank's part that goes into one round.
struct Stretch {
    uint64_t start, count;
};
Stretch stretch_of(uint64_t count, uint64_t round, uint64_t most) {
    const uint64_t start = std::min(count, round * most);
    return {start, std::min(most, count - start)};
}

// Shows a table to all; tables[r] is that of rank r.
Status exchange(Communicator& comm, const Table& own, std::vector<Table>& tables) {
    copy(comm.mine(), own.data(), own.size() * sizeof(uint64_t));
    if (const Status code = comm.round(); code != kOk) return code;
    tables.assign(comm.ranks(), Table(own.size()));
    for (uint32_t r = 0; r < comm.ranks(); ++r) copy(tables[r].data(), comm.of(r), own.size() * sizeof(uint64_t));
    return kOk;
}

// For collectives in which all ranks must give the same table.
Status agree_on(Communicator& comm, const Table& own) {
    std::vector<Table> tables;
    if (const Status code = exchange(comm, own, tables); code != kOk) return code;
    for (uint32_t r = 1; r < comm.ranks(); ++r) {
        for (uint32_t part = 0; part < comm.ranks(); ++part) {
            if (tables[r][part] == tables[0][part]) continue;
            return comm.disagree("ranks disagree about the count for rank " + std::to_string(part) + ": " +
                                 std::to_string(tables[0][part]) + " on rank 0, " + std::to_string(tables[r][part]) +
                                 " on rank " + std::to_string(r));
        }
    }
    return kOk;
}

uint64_t rounds_for(uint64_t largest, uint64_t most) { return (largest + most - 1) / most; }

// tables[r] holds what r sends to each rank, then what it receives from each.
Status check_pairs(Communicator& comm, const std::vector<Table>& tables, uint64_t& largest) {
    const uint32_t ranks = comm.ranks();
    for (uint32_t from = 0; from < ranks; ++from) {
        for (uint32_t to = 0; to < ranks; ++to) {
            const uint64_t sent = tables[from][to], expected = tables[to][ranks + from];
            if (sent != expected) {
                return comm.disagree("rank " + std::to_string(from) + " sends " + std::to_string(sent) +
                                     " elements to rank " + std::to_string(to) + ", which expects " +
                                     std::to_string(expected));
            }
            largest = std::max(largest, sent);
        }
    }
    return kOk;
}

}  // namespace

Status all_gather_v(Communicator& comm, const Buffers& data, const Parts& receive) {
    Status code = comm.enter({Operation::all_gather_v, data.dtype, kNoReduction, 0, 0});
    if (code == kOk) code = agree_on(comm, receive.counts);
    if (code != kOk) return code;
    const size_t size = bytes_of(data.dtype);
    const uint64_t most = comm.room() / size;
    const uint64_t largest = *std::max_element(receive.counts.begin(), receive.counts.end());
    for (uint64_t round = 0; round < rounds_for(largest, most); ++round) {
        const Stretch own = stretch_of(data.count, round, most);
        copy(comm.mine(), static_cast<const char*>(data.send) + own.start * size, own.count * size);
        if (code = comm.round(); code != kOk) return code;
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            const Stretch part = stretch_of(receive.counts[r], round, most);
            char* to = static_cast<char*>(data.receive) + (receive.offsets[r] + part.start) * size;
            copy(to, comm.of(r), part.count * size);
        }
    }
    return kOk;
}

Status reduce_scatter_v(Communicator& comm, const Buffers& data, const Parts& send, Reduction reduction) {
    Status code = comm.enter({Operation::reduce_scatter_v, data.dtype, reduction, 0, 0});
    if (code == kOk) code = agree_on(comm, send.counts);
    if (code != kOk) return code;
    const size_t size = bytes_of(data.dtype);
    const Reducer join = reducer(data.dtype, reduction);
    const uint64_t most = comm.room() / comm.ranks() / size;
    const uint64_t largest = *std::max_element(send.counts.begin(), send.counts.end());
    std::vector<const char*> sources(comm.ranks());
    for (uint64_t round = 0; round < rounds_for(largest, most); ++round) {
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            const Stretch part = stretch_of(send.counts[r], round, most);
            const char* from = static_cast<const char*>(data.send) + (send.offsets[r] + part.start) * size;
            copy(comm.mine() + r * most * size, from, part.count * size);
        }
        if (code = comm.round(); code != kOk) return code;
        for (uint32_t r = 0; r < comm.ranks(); ++r) sources[r] = comm.of(r) + comm.rank() * most * size;
        const Stretch own = stretch_of(data.count, round, most);
        join(sources.data(), comm.ranks(), static_cast<char*>(data.receive) + own.start * size, own.count);
    }
    return kOk;
}

Status all_to_all_v(Communicator& comm, const Buffers& data, const Parts& send, const Parts& receive) {
    Status code = comm.enter({Operation::all_to_all_v, data.dtype, kNoReduction, 0, 0});
    if (code != kOk) return code;
    Table own = send.counts;
    own.insert(own.end(), receive.counts.begin(), receive.counts.end());
    std::vector<Table> tables;
    uint64_t largest = 0;
    code = exchange(comm, own, tables);
    if (code == kOk) code = check_pairs(comm, tables, largest);
    if (code != kOk) return code;
    const size_t size = bytes_of(data.dtype);
    const uint64_t most = comm.room() / comm.ranks() / size;
    for (uint64_t round = 0; round < rounds_for(largest, most); ++round) {
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            const Stretch part = stretch_of(send.counts[r], round, most);
            const char* from = static_cast<const char*>(data.send) + (send.offsets[r] + part.start) * size;
            copy(comm.mine() + r * most * size, from, part.count * size);
        }
        if (code = comm.round(); code != kOk) return code;
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            const Stretch part = stretch_of(receive.counts[r], round, most);
            char* to = static_cast<char*>(data.receive) + (receive.offsets[r] + part.start) * size;
            copy(to, comm.of(r) + comm.rank() * most * size, part.count * size);
        }
    }
    return kOk;
}

}  // namespace ga::vnpu::hccl
