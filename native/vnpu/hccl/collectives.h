// The collectives, each as a function that runs in the calling thread until its result is there.
//
// Counts are in elements. A communicator must not be used by two threads at once; the caller holds its turn.
#pragma once
#include "communicator.h"

namespace ga::vnpu::hccl {

struct Buffers {
    const void* send;
    void* receive;
    uint64_t count;   // of the operation's signature: of all data, or of the part of one rank
    DataType dtype;
};

Status all_reduce(Communicator& comm, const Buffers& data, Reduction reduction);
Status reduce_to(Communicator& comm, const Buffers& data, Reduction reduction, uint32_t root);
Status broadcast(Communicator& comm, const Buffers& data, uint32_t root);  // send and receive are the same
Status all_gather(Communicator& comm, const Buffers& data);
Status reduce_scatter(Communicator& comm, const Buffers& data, Reduction reduction);
Status scatter(Communicator& comm, const Buffers& data, uint32_t root);
Status all_to_all(Communicator& comm, const Buffers& data);

// A part of a buffer for each rank: how many elements, and where they begin.
struct Parts {
    std::vector<uint64_t> counts;
    std::vector<uint64_t> offsets;
};

Status all_gather_v(Communicator& comm, const Buffers& data, const Parts& receive);
Status reduce_scatter_v(Communicator& comm, const Buffers& data, const Parts& send, Reduction reduction);
Status all_to_all_v(Communicator& comm, const Buffers& data, const Parts& send, const Parts& receive);

}  // namespace ga::vnpu::hccl
