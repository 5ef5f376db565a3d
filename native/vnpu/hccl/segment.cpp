// Making, opening and breaking the memory that ranks share.
#include "segment.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

namespace ga::vnpu::hccl {
namespace {

constexpr char kMagic[8] = "GAHCCL1";
constexpr off_t kFileBytes = off_t{1} << 62;  // sparse: only what is written takes memory

using Nonce = std::array<uint8_t, 16>;

struct Offer {
    pid_t process;  // descriptors are inherited by a fork, but are not the child's to close
    int file;
};

std::mutex mutex;
// Never destroyed: torch_npu gives communicators back while the process ends.
auto& offers = *new std::map<Nonce, Offer>;
auto& attached = *new std::map<Nonce, std::weak_ptr<Segment>>;

std::string system_text(const std::string& what) { return "HCCL: " + what + ": " + strerror(errno); }

Nonce nonce_of(const RootInfo& root) {
    Nonce nonce;
    memcpy(nonce.data(), root.nonce, nonce.size());
    return nonce;
}

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

struct Layout {
    size_t seats, channels, buffers, bytes;
};

Layout layout_of(size_t ranks, size_t half) {
    Layout at{};
    at.seats = round_up(sizeof(Head), 4096);
    at.channels = round_up(at.seats + ranks * sizeof(Seat), 4096);
    at.buffers = round_up(at.channels + kKinds * ranks * ranks * sizeof(Channel), 4096);
    at.bytes = at.buffers + ranks * 2 * half;
    return at;
}

// Half of the buffer of a rank, in KiB; the whole is 8 MiB unless the environment says otherwise.
uint64_t wanted_half_kib() {
    const char* text = getenv("GALLIUM_VNPU_HCCL_BUFFER_MB");
    const long megabytes = text != nullptr ? strtol(text, nullptr, 10) : 8;
    return static_cast<uint64_t>(megabytes >= 1 && megabytes <= 256 ? megabytes : 8) * 512;
}

int open_file(const RootInfo& root) {
    if (root.maker.is_self()) {
        const auto offer = offers.find(nonce_of(root));
        return offer != offers.end() && offer->second.process == getpid()
                   ? fcntl(offer->second.file, F_DUPFD_CLOEXEC, 0)
                   : -1;
    }
    const std::string path = "/proc/" + std::to_string(root.maker.id) + "/fd/" + std::to_string(root.file);
    return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

Status check_root(const RootInfo& root, uint32_t ranks) {
    if (memcmp(root.magic, kMagic, sizeof kMagic) != 0) {
        return fail(kParameter, "HCCL: this root info was not made by HcclGetRootInfo of the virtual NPU");
    }
    if (ranks == 0 || ranks > kMaxRanks) {
        return fail(kParameter, "HCCL: a communicator has 1 to 1024 ranks, not " + std::to_string(ranks));
    }
    if (strncmp(root.machine, machine_id().c_str(), sizeof root.machine) != 0) {
        return fail(kUnsupported, "HCCL: the root info comes from another machine; the ranks of a virtual NPU must all "
                                  "run on one machine");
    }
    return kOk;
}

// The first rank to come settles the shape; the others follow it, if they mean the same number of ranks.
Status settle(Head& head, uint32_t ranks, size_t& half) {
    uint64_t shape = 0;
    const uint64_t wanted = (static_cast<uint64_t>(ranks) << 32) | wanted_half_kib();
    if (head.shape.compare_exchange_strong(shape, wanted)) shape = wanted;
    if (shape >> 32 != ranks) {
        return fail(kParameter, "HCCL: ranks disagree about the size of the communicator: " + std::to_string(ranks) +
                                    " here, " + std::to_string(shape >> 32) + " elsewhere");
    }
    half = static_cast<size_t>(shape & 0xFFFFFFFFu) * 1024;
    return kOk;
}

}  // namespace

Status Segment::offer(RootInfo& root) {
    root = {};
    memcpy(root.magic, kMagic, sizeof kMagic);
    if (getrandom(root.nonce, sizeof root.nonce, 0) != sizeof root.nonce) {
        return fail(kInternal, system_text("no random numbers"));
    }
    const int file = static_cast<int>(syscall(SYS_memfd_create, "gallium-hccl", MFD_CLOEXEC));
    if (file < 0) return fail(kInternal, system_text("no shared memory"));
    const Nonce nonce = nonce_of(root);
    if (ftruncate(file, kFileBytes) != 0 || pwrite(file, nonce.data(), nonce.size(), 0) < 0) {
        close(file);
        return fail(kInternal, system_text("shared memory cannot be sized"));
    }
    const std::string machine = machine_id();
    memcpy(root.machine, machine.data(), std::min(machine.size(), sizeof root.machine - 1));
    root.maker = Process::self();
    root.file = file;
    const std::lock_guard<std::mutex> lock(mutex);
    offers[nonce] = {getpid(), file};
    return kOk;
}

Status Segment::attach(const RootInfo& root, uint32_t ranks, std::shared_ptr<Segment>& out) {
    if (const Status code = check_root(root, ranks); code != kOk) return code;
    const std::lock_guard<std::mutex> lock(mutex);
    const Nonce nonce = nonce_of(root);
    out = attached[nonce].lock();
    if (out != nullptr) {
        return out->ranks() == ranks ? kOk : settle(out->head(), ranks, out->half_);
    }
    const int file = open_file(root);
    Nonce found{};
    if (file < 0 || pread(file, found.data(), found.size(), 0) < 0 || found != nonce) {
        if (file >= 0) close(file);
        return fail(kInternal, "HCCL: the process that made the root info (process " + std::to_string(root.maker.id) +
                                   ") has ended, or is not visible from this one");
    }
    void* head = mmap(nullptr, sizeof(Head), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (head == MAP_FAILED) {
        close(file);
        return fail(kInternal, system_text("shared memory cannot be mapped"));
    }
    size_t half = 0;
    const Status code = settle(*static_cast<Head*>(head), ranks, half);
    munmap(head, sizeof(Head));
    const size_t bytes = layout_of(ranks, half).bytes;
    void* base = code == kOk ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0)
                             : MAP_FAILED;
    if (base == MAP_FAILED) {
        close(file);
        return code != kOk ? code : fail(kInternal, system_text("shared memory cannot be mapped"));
    }
    out.reset(new Segment(file, static_cast<char*>(base), bytes, ranks, half));
    attached[nonce] = out;
    return kOk;
}

Segment::Segment(int file, char* base, size_t bytes, uint32_t ranks, size_t half)
    : file_(file), base_(base), bytes_(bytes), ranks_(ranks), half_(half) {
    const Layout at = layout_of(ranks, half);
    seats_ = reinterpret_cast<Seat*>(base + at.seats);
    channels_ = reinterpret_cast<Channel*>(base + at.channels);
    buffers_ = base + at.buffers;
}

Segment::~Segment() {
    const std::lock_guard<std::mutex> lock(mutex);
    const Nonce nonce = head().nonce;
    const auto found = attached.find(nonce);
    if (found != attached.end() && found->second.expired()) attached.erase(found);
    if (const auto offer = offers.find(nonce); offer != offers.end()) {
        if (offer->second.process == getpid()) close(offer->second.file);
        offers.erase(offer);
    }
    munmap(base_, bytes_);
    close(file_);
}

Status Segment::break_with(Status code, const std::string& why) const {
    uint32_t nobody = 0;
    if (!head().breaking.compare_exchange_strong(nobody, 1)) {
        const Status first = broken();
        return first != kOk ? first : fail(code, why);  // the first is still writing: this rank's view is as good
    }
    const size_t size = std::min(why.size(), sizeof head().why - 1);
    memcpy(head().why, why.data(), size);
    head().why[size] = '\0';
    head().broken.store(static_cast<uint32_t>(code), std::memory_order_release);
    futex_wake_all(head().round.word);
    futex_wake_all(head().seated.word);
    for (uint32_t rank = 0; rank < ranks_; ++rank) futex_wake_all(seat(rank).bell.word);
    return fail(code, why);
}

Status Segment::broken() const {
    const uint32_t code = head().broken.load(std::memory_order_acquire);
    return code == 0 ? kOk : fail(static_cast<Status>(code), head().why);
}

}  // namespace ga::vnpu::hccl
