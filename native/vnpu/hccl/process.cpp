// Processes as /proc shows them.
#include "process.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

namespace ga::vnpu::hccl {
namespace {

// A small file of /proc as text; empty if it cannot be read.
std::string read_small(const char* path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return "";
    char text[1024];
    const ssize_t size = read(file, text, sizeof text);
    close(file);
    return size > 0 ? std::string(text, static_cast<size_t>(size)) : "";
}

struct Stat {
    char state = 'X';
    uint64_t started = 0;
};

// The state is the third field, the start the 22nd; the second, the program's name, may hold blanks and brackets.
Stat stat_of(int32_t id) {
    const std::string text = read_small(("/proc/" + std::to_string(id) + "/stat").c_str());
    const size_t bracket = text.rfind(')');
    if (bracket == std::string::npos || bracket + 2 >= text.size()) return {};
    Stat stat;
    stat.state = text[bracket + 2];
    const char* at = text.c_str() + bracket + 2;
    for (int field = 3; field < 22; ++field) {
        at = strchr(at, ' ');
        if (at == nullptr) return {};
        ++at;
    }
    stat.started = strtoull(at, nullptr, 10);
    return stat;
}

}  // namespace

Process Process::self() {
    const int32_t id = getpid();
    return {id, stat_of(id).started};
}

bool Process::is_self() const { return id == getpid(); }

bool Process::alive() const {
    if (is_self()) return true;
    const Stat stat = stat_of(id);
    return stat.started == started && stat.state != 'Z' && stat.state != 'X' && stat.state != 'x';
}

std::string machine_id() { return read_small("/proc/sys/kernel/random/boot_id").substr(0, 36); }

}  // namespace ga::vnpu::hccl
