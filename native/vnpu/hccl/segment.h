// The memory that the ranks of one communicator share: seats, buffers for collectives, and streams of messages.
//
// It is an anonymous memory file, made by the process that makes the root info and opened by the others through
// /proc/<process>/fd. It has no name anywhere, so it is gone with its last rank, however that ends.
#pragma once
#include <stdint.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "process.h"
#include "waiting.h"

namespace ga::vnpu::hccl {

constexpr uint32_t kMaxRanks = 1024;
constexpr size_t kRootInfoBytes = 4108;

// What the root info holds; the rest of its bytes are zero.
struct RootInfo {
    char magic[8];
    uint8_t nonce[16];
    char machine[40];
    Process maker;
    int32_t file;  // descriptor in the maker
};
static_assert(sizeof(RootInfo) <= kRootInfoBytes);

// What a rank says about the collective that it enters. All ranks must say the same.
struct Entry {
    Operation operation;
    DataType dtype;
    Reduction reduction;
    uint32_t root;
    uint64_t count;

    bool operator==(const Entry& other) const {
        return operation == other.operation && dtype == other.dtype && reduction == other.reduction &&
               root == other.root && count == other.count;
    }
};

enum SeatState : uint32_t { kVacant, kClaimed, kTaken, kLeft };

struct alignas(64) Seat {
    std::atomic<uint32_t> state;
    Process process;
    std::atomic<uint64_t> posted;   // rounds: this rank's part of round n can be read once posted >= n
    std::atomic<uint64_t> doing;    // number of the last collective entered * 256 + its operation
    Bell bell;                      // rung when a message for this rank has come
    Entry entries[2];               // of the current and the last round
};

// A stream of messages from one rank to another: positions that only grow, of bytes in the file.
struct alignas(64) Channel {
    std::atomic<uint64_t> written;
    std::atomic<uint64_t> read;
};

enum class Kind : uint32_t { user, control };  // control: what HCCL itself sends
constexpr uint32_t kKinds = 2;

struct alignas(64) Head {
    std::array<uint8_t, 16> nonce;
    std::atomic<uint64_t> shape;    // ranks and buffer size, settled by the first rank that attaches
    Bell seated;                    // rung when a rank has taken its seat
    std::atomic<uint64_t> arrivals; // in all rounds
    alignas(64) Bell round;         // the word is the last round that all ranks have posted
    std::atomic<uint32_t> breaking; // the first rank that fails writes why, then sets broken
    std::atomic<uint32_t> broken;
    char why[2000];
};

class Segment {
public:
    // Makes a new one and keeps it open until this process attaches to it.
    static Status offer(RootInfo& root);
    // Maps it; ranks of one process share one mapping.
    static Status attach(const RootInfo& root, uint32_t ranks, std::shared_ptr<Segment>& out);
    ~Segment();
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    Head& head() const { return *reinterpret_cast<Head*>(base_); }
    Seat& seat(uint32_t rank) const { return seats_[rank]; }
    Channel& channel(Kind kind, uint32_t from, uint32_t to) const { return channels_[channel_index(kind, from, to)]; }
    uint32_t ranks() const { return ranks_; }

    // A rank's buffer has two halves: what was posted in one round stays readable during the next.
    size_t half_bytes() const { return half_; }
    char* half(uint32_t rank, uint64_t round) const { return buffers_ + (size_t{2} * rank + (round & 1)) * half_; }

    // Copies bytes into or out of a stream, or gives the memory of a part that was read back to the system.
    Status put(Kind kind, uint32_t from, uint32_t to, uint64_t position, const void* data, size_t bytes) const;
    Status take(Kind kind, uint32_t from, uint32_t to, uint64_t position, void* data, size_t bytes) const;
    void release(Kind kind, uint32_t from, uint32_t to, uint64_t begin, uint64_t end) const;

    // The first failure of any rank breaks the communicator for all of them; each tells the same text.
    Status break_with(Status code, const std::string& why) const;
    Status broken() const;  // 0, or the code, with the text set

private:
    Segment(int file, char* base, size_t bytes, uint32_t ranks, size_t half);
    size_t channel_index(Kind kind, uint32_t from, uint32_t to) const {
        return (static_cast<size_t>(kind) * ranks_ + from) * ranks_ + to;
    }
    uint64_t stream_start(Kind kind, uint32_t from, uint32_t to) const;

    int file_;
    char* base_;
    size_t bytes_;
    uint32_t ranks_;
    size_t half_;
    Seat* seats_;
    Channel* channels_;
    char* buffers_;
};

}  // namespace ga::vnpu::hccl
