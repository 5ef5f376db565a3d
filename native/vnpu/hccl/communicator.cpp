// Joining, leaving and the rounds of a communicator.
#include "communicator.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

namespace ga::vnpu::hccl {
namespace {

// Seconds from an environment variable; what is not a number above zero counts as not set.
int64_t seconds_of(const char* variable, int64_t otherwise) {
    const char* text = getenv(variable);
    const int64_t seconds = text != nullptr ? strtoll(text, nullptr, 10) : 0;
    return seconds > 0 ? seconds : otherwise;
}

uint32_t usable_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<uint32_t>(CPU_COUNT(&set)) : 1;
}

std::string name_from(const RootInfo& root) {
    std::string name = "gallium_vnpu_";
    for (const uint8_t byte : root.nonce) {
        constexpr char digits[] = "0123456789abcdef";
        name += digits[byte >> 4];
        name += digits[byte & 15];
    }
    return name;
}

std::string text_of(const Entry& entry) {
    std::string text = std::string(name_of(entry.operation)) + "(";
    text += std::to_string(entry.count) + " of " + name_of(entry.dtype);
    if (entry.reduction != kNoReduction) text += ", " + name_of_reduction(entry.reduction);
    if (entry.root != 0) text += ", root " + std::to_string(entry.root);
    return text + ")";
}

}  // namespace

Settings settings_from_environment() {
    Settings settings;
    settings.seconds = seconds_of("GALLIUM_VNPU_HCCL_TIMEOUT", seconds_of("HCCL_EXEC_TIMEOUT", 600));
    settings.connect_seconds = seconds_of("HCCL_CONNECT_TIMEOUT", 120);
    return settings;
}

Communicator::Communicator(std::shared_ptr<Segment> segment, uint32_t rank, Settings settings)
    : segment_(std::move(segment)),
      rank_(rank),
      settings_(std::move(settings)),
      process_(Process::self()),
      // With fewer processors than ranks, spinning would keep from running the very rank that is waited for.
      spin_(usable_cpus() >= segment_->ranks()),
      receiving_(new std::mutex[size_t{kKinds} * segment_->ranks()]),
      released_(size_t{kKinds} * segment_->ranks()) {}

Status Communicator::join(const RootInfo& root, uint32_t ranks, uint32_t rank, const Settings& settings,
                          CommunicatorPtr& out) {
    if (rank >= ranks) {
        return fail(kParameter, "HCCL: there is no rank " + std::to_string(rank) + " of " + std::to_string(ranks));
    }
    std::shared_ptr<Segment> segment;
    if (const Status code = Segment::attach(root, ranks, segment); code != kOk) return code;
    CommunicatorPtr joined(new Communicator(segment, rank, settings));
    if (joined->settings_.name.empty()) joined->settings_.name = name_from(root);
    Seat& seat = segment->seat(rank);
    uint32_t vacant = kVacant;
    if (!seat.state.compare_exchange_strong(vacant, kClaimed)) {
        return fail(kParameter, "HCCL: rank " + std::to_string(rank) + " of communicator " + joined->name() +
                                    " is taken by process " + std::to_string(seat.process.id));
    }
    seat.process = joined->process_;
    seat.state.store(kTaken, std::memory_order_release);
    segment->head().seated.word.fetch_add(1, std::memory_order_seq_cst);
    segment->head().seated.ring();
    const Status code = joined->wait_for_all_seats();
    if (code == kOk) out = joined;
    return code;
}

Status Communicator::wait_for_all_seats() {
    const int64_t start = now_ns();
    const auto missing = [&] {
        std::string list;
        for (uint32_t r = 0; r < ranks(); ++r) {
            if (segment_->seat(r).state.load(std::memory_order_acquire) < kTaken) list += " " + std::to_string(r);
        }
        return list;
    };
    const auto look_around = [&](bool signal) {
        if (signal) return give_up(kInternal, "HCCL: " + rank_text(rank_) + " was interrupted while it connected");
        for (uint32_t r = 0; r < ranks(); ++r) {
            const Seat& seat = segment_->seat(r);
            if (seat.state.load(std::memory_order_acquire) != kTaken || seat.process.alive()) continue;
            return give_up(kInternal, "HCCL: " + rank_text(r) + " ended while communicator " + name() + " was made");
        }
        if (now_ns() - start < settings_.connect_seconds * 1000000000) return kOk;
        return give_up(kTimedOut, "HCCL: communicator " + name() + " was not made within " +
                                      std::to_string(settings_.connect_seconds) + " s: of " + std::to_string(ranks()) +
                                      " ranks these did not come:" + missing());
    };
    const auto all_seated = [&] { return segment_->head().seated.word.load(std::memory_order_acquire) == ranks(); };
    return wait_until(segment_->head().seated, false, all_seated, [&] { return broken(); }, look_around);
}

void Communicator::leave() { segment_->seat(rank_).state.store(kLeft, std::memory_order_release); }

Status Communicator::enter(const Entry& entry) {
    if (inherited()) {
        return fail(kInternal, "HCCL: communicator " + name() + " belongs to process " + std::to_string(process_.id) +
                                   "; a process forked from it cannot use it");
    }
    if (const Status code = broken(); code != kOk) return code;
    Seat& seat = segment_->seat(rank_);
    operation_ = entry.operation;
    seat.doing.store((++calls_ << 8) | static_cast<uint64_t>(entry.operation), std::memory_order_relaxed);
    seat.entries[(rounds_ + 1) & 1] = entry;
    said_ = false;
    return kOk;
}

Status Communicator::round() {
    Head& head = segment_->head();
    const uint64_t round = ++rounds_;
    segment_->seat(rank_).posted.store(round, std::memory_order_release);
    if (head.arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 == round * ranks()) {
        head.round.word.store(static_cast<uint32_t>(round), std::memory_order_seq_cst);
        head.round.ring();
    } else {
        const int64_t start = now_ns();
        const auto all_posted = [&] {
            const uint32_t reached = head.round.word.load(std::memory_order_acquire);
            return static_cast<int32_t>(reached - static_cast<uint32_t>(round)) >= 0;
        };
        const auto look_around = [&](bool signal) { return look_for_missing(start, signal); };
        const Status code = wait_until(head.round, spin_, all_posted, [&] { return broken(); }, look_around);
        if (code != kOk) return code;
    }
    if (said_) return kOk;
    said_ = true;
    return check_entries();
}

Status Communicator::check_entries() const {
    const Entry& first = segment_->seat(0).entries[rounds_ & 1];
    for (uint32_t r = 1; r < ranks(); ++r) {
        const Entry& other = segment_->seat(r).entries[rounds_ & 1];
        if (other == first) continue;
        return give_up(kParameter, "HCCL: ranks disagree in call " + std::to_string(calls_) + " on communicator " +
                                       name() + ": " + rank_text(0) + " calls " + text_of(first) + ", " +
                                       rank_text(r) + " calls " + text_of(other));
    }
    return kOk;
}

Status Communicator::disagree(const std::string& what) { return give_up(kParameter, title() + what); }

Status Communicator::look_for_missing(int64_t since, bool signal) const {
    if (signal) return give_up(kInternal, title() + "rank " + std::to_string(rank_) + " was interrupted");
    std::string waited_for;
    for (uint32_t r = 0; r < ranks(); ++r) {
        const Seat& seat = segment_->seat(r);
        const auto posted = [&] { return seat.posted.load(std::memory_order_acquire) >= rounds_; };
        if (posted()) continue;
        const bool left = seat.state.load(std::memory_order_acquire) == kLeft;
        if ((left || !seat.process.alive()) && !posted()) {
            return give_up(kInternal, title() + rank_text(r) + (left ? " has left the communicator" : " is dead"));
        }
        waited_for += (waited_for.empty() ? "" : ", ") + rank_text(r) + ", which " + doing_text(r);
    }
    if (waited_for.empty() || !late(since)) return kOk;
    return give_up(kTimedOut, title() + "timed out after " + std::to_string(settings_.seconds) + " s; rank " +
                                  std::to_string(rank_) + " waits for " + waited_for);
}

bool Communicator::late(int64_t since) const { return now_ns() - since > settings_.seconds * 1000000000; }

Status Communicator::give_up(Status code, const std::string& why) const { return segment_->break_with(code, why); }

std::string Communicator::title() const {
    return std::string("HCCL: ") + name_of(operation_) + ", call " + std::to_string(calls_) + " on communicator " +
           name() + ": ";
}

std::string Communicator::rank_text(uint32_t rank) const {
    return "rank " + std::to_string(rank) + " (process " + std::to_string(segment_->seat(rank).process.id) + ")";
}

std::string Communicator::doing_text(uint32_t rank) const {
    const uint64_t doing = segment_->seat(rank).doing.load(std::memory_order_relaxed);
    if (doing == 0) return "has entered no collective yet";
    return std::string("last entered ") + name_of(static_cast<Operation>(doing & 255)) + ", call " +
           std::to_string(doing >> 8);
}

}  // namespace ga::vnpu::hccl
