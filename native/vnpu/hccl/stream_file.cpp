// Streams of messages: each has a stretch of the shared file that is far larger than what is ever in it at once, so a
// sender appends and never waits for room. What was read is given back to the system.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "segment.h"

namespace ga::vnpu::hccl {
namespace {

constexpr uint64_t kStretch = uint64_t{1} << 40;
constexpr uint64_t kPage = 4096;

// Calls step(file offset, bytes) for a part of a stream, in one or two pieces, as the stretch is used in a circle.
template <class Step>
bool in_pieces(uint64_t start, uint64_t position, uint64_t bytes, Step step) {
    while (bytes != 0) {
        const uint64_t offset = position % kStretch, piece = std::min(bytes, kStretch - offset);
        if (!step(start + offset, piece)) return false;
        position += piece;
        bytes -= piece;
    }
    return true;
}

// Reads or writes all of it; the system moves at most 2 GiB at a time.
template <class Move>
bool move_all(Move move, uint64_t offset, uint64_t bytes) {
    while (bytes != 0) {
        const ssize_t moved = move(static_cast<size_t>(bytes), static_cast<off_t>(offset));
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) return false;
        offset += static_cast<uint64_t>(moved);
        bytes -= static_cast<uint64_t>(moved);
    }
    return true;
}

Status no_room() { return fail(kInternal, std::string("HCCL: a message cannot be kept: ") + strerror(errno)); }

}  // namespace

uint64_t Segment::stream_start(Kind kind, uint32_t from, uint32_t to) const {
    return (1 + channel_index(kind, from, to)) * kStretch;
}

Status Segment::put(Kind kind, uint32_t from, uint32_t to, uint64_t position, const void* data, size_t bytes) const {
    const char* at = static_cast<const char*>(data);
    const auto write_piece = [&](uint64_t offset, uint64_t piece) {
        return move_all(
            [&](size_t size, off_t where) {
                const ssize_t moved = pwrite(file_, at, size, where);
                if (moved > 0) at += moved;
                return moved;
            },
            offset, piece);
    };
    return in_pieces(stream_start(kind, from, to), position, bytes, write_piece) ? kOk : no_room();
}

Status Segment::take(Kind kind, uint32_t from, uint32_t to, uint64_t position, void* data, size_t bytes) const {
    char* at = static_cast<char*>(data);
    const auto read_piece = [&](uint64_t offset, uint64_t piece) {
        return move_all(
            [&](size_t size, off_t where) {
                const ssize_t moved = pread(file_, at, size, where);
                if (moved > 0) at += moved;
                return moved;
            },
            offset, piece);
    };
    return in_pieces(stream_start(kind, from, to), position, bytes, read_piece) ? kOk : no_room();
}

void Segment::release(Kind kind, uint32_t from, uint32_t to, uint64_t begin, uint64_t end) const {
    begin = begin / kPage * kPage;
    end = end / kPage * kPage;
    if (begin >= end) return;
    in_pieces(stream_start(kind, from, to), begin, end - begin, [&](uint64_t offset, uint64_t piece) {
        // Memory that cannot be given back is only a loss of memory.
        (void)fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                        static_cast<off_t>(piece));
        return true;
    });
}

}  // namespace ga::vnpu::hccl
