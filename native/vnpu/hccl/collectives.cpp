// Collectives in which every rank has the same count. What is larger than a buffer goes through it in chunks.
#include "collectives.h"

#include <string.h>

#include <algorithm>

#include "reduce.h"

namespace ga::vnpu::hccl {
namespace {

// Up to here every rank reduces everything itself, which takes one round instead of two.
constexpr uint64_t kSmall = 64 * 1024;
// Chunks of a reduction are read several times, so they should stay in the processor's caches.
constexpr uint64_t kCached = 1024 * 1024;

void copy(void* to, const void* from, uint64_t bytes) {
    if (bytes != 0 && to != from) memmove(to, from, bytes);
}

const char* at(const void* data, uint64_t offset) { return static_cast<const char*>(data) + offset; }
char* at(void* data, uint64_t offset) { return static_cast<char*>(data) + offset; }

// The part of a chunk that one rank reduces: whole elements, the first ranks take one more.
struct Slice {
    uint64_t start, count;
};
Slice slice_of(uint64_t count, uint32_t ranks, uint32_t rank) {
    const uint64_t each = count / ranks, more = count % ranks;
    return {each * rank + std::min<uint64_t>(rank, more), each + (rank < more ? 1 : 0)};
}

// What all ranks posted, from a byte on.
std::vector<const char*> sources(const Communicator& comm, uint64_t offset) {
    std::vector<const char*> all(comm.ranks());
    for (uint32_t r = 0; r < comm.ranks(); ++r) all[r] = comm.of(r) + offset;
    return all;
}

// Reduces one chunk into `to`, or only helps to if that is null: each rank reduces a slice, and then shares it.
Status reduce_chunk(Communicator& comm, const char* from, char* to, uint64_t count, size_t size, Reducer join) {
    copy(comm.mine(), from, count * size);
    if (const Status code = comm.round(); code != kOk) return code;
    if (count * size <= kSmall) {
        if (to != nullptr) join(sources(comm, 0).data(), comm.ranks(), to, count);
        return kOk;
    }
    const Slice own = slice_of(count, comm.ranks(), comm.rank());
    join(sources(comm, own.start * size).data(), comm.ranks(), comm.mine() + own.start * size, own.count);
    if (const Status code = comm.round(); code != kOk) return code;
    for (uint32_t r = 0; to != nullptr && r < comm.ranks(); ++r) {
        const Slice slice = slice_of(count, comm.ranks(), r);
        copy(to + slice.start * size, comm.of(r) + slice.start * size, slice.count * size);
    }
    return kOk;
}

// Calls step(first element, count) for chunks of at most so many elements, and once if there are none at all, since a
// rank must take part in a collective of nothing as well.
template <class Step>
Status in_chunks(uint64_t count, uint64_t most, Step step) {
    uint64_t start = 0;
    do {
        const uint64_t chunk = std::min(most, count - start);
        if (const Status code = step(start, chunk); code != kOk) return code;
        start += chunk;
    } while (start < count);
    return kOk;
}

Status reduce_all(Communicator& comm, const Buffers& data, Reduction reduction, bool wanted) {
    const size_t size = bytes_of(data.dtype);
    const Reducer join = reducer(data.dtype, reduction);
    return in_chunks(data.count, std::min<uint64_t>(comm.room(), kCached) / size, [&](uint64_t start, uint64_t count) {
        char* to = wanted ? at(data.receive, start * size) : nullptr;
        return reduce_chunk(comm, at(data.send, start * size), to, count, size, join);
    });
}

}  // namespace

Status all_reduce(Communicator& comm, const Buffers& data, Reduction reduction) {
    const Status code = comm.enter({Operation::all_reduce, data.dtype, reduction, 0, data.count});
    return code != kOk ? code : reduce_all(comm, data, reduction, true);
}

Status reduce_to(Communicator& comm, const Buffers& data, Reduction reduction, uint32_t root) {
    const Status code = comm.enter({Operation::reduce, data.dtype, reduction, root, data.count});
    return code != kOk ? code : reduce_all(comm, data, reduction, comm.rank() == root);
}

Status broadcast(Communicator& comm, const Buffers& data, uint32_t root) {
    Status code = comm.enter({Operation::broadcast, data.dtype, kNoReduction, root, data.count});
    if (code != kOk) return code;
    return in_chunks(data.count * bytes_of(data.dtype), comm.room(), [&](uint64_t start, uint64_t bytes) {
        if (comm.rank() == root) copy(comm.mine(), at(data.send, start), bytes);
        if (const Status failed = comm.round(); failed != kOk) return failed;
        if (comm.rank() != root) copy(at(data.receive, start), comm.of(root), bytes);
        return kOk;
    });
}

Status all_gather(Communicator& comm, const Buffers& data) {
    const Status code = comm.enter({Operation::all_gather, data.dtype, kNoReduction, 0, data.count});
    if (code != kOk) return code;
    const uint64_t part = data.count * bytes_of(data.dtype);
    return in_chunks(part, comm.room(), [&](uint64_t start, uint64_t bytes) {
        copy(comm.mine(), at(data.send, start), bytes);
        if (const Status failed = comm.round(); failed != kOk) return failed;
        for (uint32_t r = 0; r < comm.ranks(); ++r) copy(at(data.receive, r * part + start), comm.of(r), bytes);
        return kOk;
    });
}

Status reduce_scatter(Communicator& comm, const Buffers& data, Reduction reduction) {
    const Status code = comm.enter({Operation::reduce_scatter, data.dtype, reduction, 0, data.count});
    if (code != kOk) return code;
    const size_t size = bytes_of(data.dtype);
    const Reducer join = reducer(data.dtype, reduction);
    return in_chunks(data.count, comm.room() / comm.ranks() / size, [&](uint64_t start, uint64_t count) {
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            copy(comm.mine() + r * count * size, at(data.send, (r * data.count + start) * size), count * size);
        }
        if (const Status failed = comm.round(); failed != kOk) return failed;
        join(sources(comm, comm.rank() * count * size).data(), comm.ranks(), at(data.receive, start * size), count);
        return kOk;
    });
}

Status scatter(Communicator& comm, const Buffers& data, uint32_t root) {
    const Status code = comm.enter({Operation::scatter, data.dtype, kNoReduction, root, data.count});
    if (code != kOk) return code;
    const uint64_t part = data.count * bytes_of(data.dtype);
    return in_chunks(part, comm.room() / comm.ranks(), [&](uint64_t start, uint64_t bytes) {
        for (uint32_t r = 0; comm.rank() == root && r < comm.ranks(); ++r) {
            copy(comm.mine() + r * bytes, at(data.send, r * part + start), bytes);
        }
        if (const Status failed = comm.round(); failed != kOk) return failed;
        copy(at(data.receive, start), comm.of(root) + comm.rank() * bytes, bytes);
        return kOk;
    });
}

Status all_to_all(Communicator& comm, const Buffers& data) {
    const Status code = comm.enter({Operation::all_to_all, data.dtype, kNoReduction, 0, data.count});
    if (code != kOk) return code;
    const uint64_t part = data.count * bytes_of(data.dtype);
    return in_chunks(part, comm.room() / comm.ranks(), [&](uint64_t start, uint64_t bytes) {
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            copy(comm.mine() + r * bytes, at(data.send, r * part + start), bytes);
        }
        if (const Status failed = comm.round(); failed != kOk) return failed;
        for (uint32_t r = 0; r < comm.ranks(); ++r) {
            copy(at(data.receive, r * part + start), comm.of(r) + comm.rank() * bytes, bytes);
        }
        return kOk;
    });
}

}  // namespace ga::vnpu::hccl
