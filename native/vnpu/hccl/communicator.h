// One rank of a communicator: its seat, its rounds, its messages, and what it says when something goes wrong.
//
// Collectives are made of rounds. In each, every rank writes its part into its own buffer, posts it, and waits until
// all have posted; then it may read all parts. A buffer has two halves that take turns, so a rank that is still reading
// one round is not overwritten by a rank that already writes the next, and one wait per round is enough.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "segment.h"

namespace ga::vnpu::hccl {

struct Settings {
    std::string name;            // empty: made from the root info
    int64_t seconds = 0;         // limit of a wait for other ranks
    int64_t connect_seconds = 0; // limit of the wait for all ranks to come
};
Settings settings_from_environment();

class Communicator {
public:
    // Takes the seat and waits until all ranks have taken theirs.
    static Status join(const RootInfo& root, uint32_t ranks, uint32_t rank, const Settings& settings,
                       std::shared_ptr<Communicator>& out);
    // The other ranks learn that this one will not come again.
    void leave();

    uint32_t rank() const { return rank_; }
    uint32_t ranks() const { return segment_->ranks(); }
    const std::string& name() const { return settings_.name; }
    const Segment* segment() const { return segment_.get(); }
    const Settings& settings() const { return settings_; }
    bool inherited() const { return !process_.is_self(); }  // by a fork, which must not use it
    Status broken() const { return segment_->broken(); }

    // Rounds, for the thread that holds the turn.
    std::unique_lock<std::mutex> take_turn() { return std::unique_lock<std::mutex>(turn_); }
    Status enter(const Entry& entry);                       // begins a collective; says what it is in its first round
    Status round();                                         // posts and waits for all
    char* mine() const { return segment_->half(rank_, rounds_ + 1); }                    // to write, before round()
    const char* of(uint32_t rank) const { return segment_->half(rank, rounds_); }        // to read, after round()
    size_t room() const { return segment_->half_bytes(); }
    Status disagree(const std::string& what);               // breaks the communicator over something all ranks see

    // Messages. Sending never waits; receiving waits for a message of this count and type.
    Status send(Kind kind, const void* data, uint64_t count, DataType dtype, uint32_t to);
    Status receive(Kind kind, void* data, uint64_t count, DataType dtype, uint32_t from);

private:
    Communicator(std::shared_ptr<Segment> segment, uint32_t rank, Settings settings);
    Status wait_for_all_seats();
    Status check_entries() const;
    Status look_for_missing(int64_t since, bool signal) const;
    Status look_for_sender(Kind kind, uint32_t from, int64_t since, bool signal) const;
    Status give_up(Status code, const std::string& why) const;
    std::string title() const;                      // what this rank is doing, and where
    std::string rank_text(uint32_t rank) const;     // "rank 2 (process 4711)"
    std::string doing_text(uint32_t rank) const;    // what that rank entered last
    bool late(int64_t since) const;

    std::shared_ptr<Segment> segment_;
    uint32_t rank_;
    Settings settings_;
    Process process_;
    bool spin_;
    std::mutex turn_;
    uint64_t rounds_ = 0;
    uint64_t calls_ = 0;
    Operation operation_ = Operation::nothing;
    bool said_ = true;           // the entry was compared with those of the other ranks
    std::mutex sending_;
    std::unique_ptr<std::mutex[]> receiving_;  // one per sender
    std::vector<uint64_t> released_;           // per sender: read and given back up to here
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

}  // namespace ga::vnpu::hccl
