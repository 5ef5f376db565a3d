// Which process a rank is, and whether it still lives.
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include <string>

namespace ga::vnpu::hccl {

// A process number alone is used again after its process has ended; with the time of its start it is not.
struct Process {
    int32_t id = 0;
    uint64_t started = 0;  // in clock ticks since the machine started

    static Process self();
    bool alive() const;    // an ended process that nobody has waited for (a zombie) is not alive
    bool is_self() const;
};

std::string machine_id();  // differs between machines, and between two starts of one

}  // namespace ga::vnpu::hccl
