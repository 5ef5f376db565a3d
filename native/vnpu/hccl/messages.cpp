// Messages between two ranks. A message is a header and its bytes, appended to the stream of the pair.
#include <string.h>

#include "communicator.h"

namespace ga::vnpu::hccl {
namespace {

struct Header {
    uint64_t count;
    uint64_t bytes;
    DataType dtype;
    uint32_t unused;
};

constexpr uint64_t kKeep = 256 * 1024;  // read bytes that may stay in memory, so that small messages reuse their pages

std::string text_of(uint64_t count, DataType dtype) { return std::to_string(count) + " of " + name_of(dtype); }

}  // namespace

Status Communicator::send(Kind kind, const void* data, uint64_t count, DataType dtype, uint32_t to) {
    if (inherited()) return fail(kInternal, "HCCL: a forked process cannot use communicator " + name());
    if (const Status code = broken(); code != kOk) return code;
    const Header header{count, count * bytes_of(dtype), dtype, 0};
    Channel& channel = segment_->channel(kind, rank_, to);
    {
        const std::lock_guard<std::mutex> lock(sending_);
        const uint64_t position = channel.written.load(std::memory_order_relaxed);
        Status code = segment_->put(kind, rank_, to, position, &header, sizeof header);
        if (code == kOk) code = segment_->put(kind, rank_, to, position + sizeof header, data, header.bytes);
        if (code != kOk) return code;
        channel.written.store(position + sizeof header + header.bytes, std::memory_order_release);
    }
    Bell& bell = segment_->seat(to).bell;
    bell.word.fetch_add(1, std::memory_order_seq_cst);
    bell.ring();
    return kOk;
}

Status Communicator::receive(Kind kind, void* data, uint64_t count, DataType dtype, uint32_t from) {
    if (inherited()) return fail(kInternal, "HCCL: a forked process cannot use communicator " + name());
    if (const Status code = broken(); code != kOk) return code;
    const size_t pair = static_cast<size_t>(kind) * ranks() + from;
    const std::lock_guard<std::mutex> lock(receiving_[pair]);
    Channel& channel = segment_->channel(kind, from, rank_);
    const uint64_t position = channel.read.load(std::memory_order_relaxed);
    const int64_t start = now_ns();
    const auto arrived = [&] { return channel.written.load(std::memory_order_acquire) != position; };
    const auto look_around = [&](bool signal) { return look_for_sender(kind, from, start, signal); };
    Status code = wait_until(segment_->seat(rank_).bell, spin_, arrived, [&] { return broken(); }, look_around);
    Header header{};
    if (code == kOk) code = segment_->take(kind, from, rank_, position, &header, sizeof header);
    if (code != kOk) return code;
    if (header.count != count || header.dtype != dtype) {
        return give_up(kParameter, "HCCL: " + rank_text(from) + " sends " + text_of(header.count, header.dtype) +
                                       " on communicator " + name() + ", but " + rank_text(rank_) + " receives " +
                                       text_of(count, dtype));
    }
    code = segment_->take(kind, from, rank_, position + sizeof header, data, header.bytes);
    if (code != kOk) return code;
    const uint64_t end = position + sizeof header + header.bytes;
    channel.read.store(end, std::memory_order_release);
    if (end - released_[pair] >= kKeep) {
        segment_->release(kind, from, rank_, released_[pair], end);
        released_[pair] = end;
    }
    return kOk;
}

Status Communicator::look_for_sender(Kind kind, uint32_t from, int64_t since, bool signal) const {
    const std::string receiver = "HCCL: HcclRecv on communicator " + name() + ": " + rank_text(rank_);
    if (signal) return give_up(kInternal, receiver + " was interrupted");
    const Seat& seat = segment_->seat(from);
    const bool left = seat.state.load(std::memory_order_acquire) == kLeft;
    if (left || !seat.process.alive()) {
        // It may have sent just before it ended.
        const Channel& channel = segment_->channel(kind, from, rank_);
        if (channel.written.load(std::memory_order_acquire) != channel.read.load(std::memory_order_relaxed)) return kOk;
        return give_up(kInternal, receiver + " waits for a message of " + rank_text(from) + ", which " +
                                      (left ? "has left the communicator" : "is dead"));
    }
    if (!late(since)) return kOk;
    return give_up(kTimedOut, receiver + " timed out after " + std::to_string(settings_.seconds) +
                                  " s, waiting for a message of " + rank_text(from) + ", which " + doing_text(from));
}

}  // namespace ga::vnpu::hccl
