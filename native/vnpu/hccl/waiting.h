// Waiting for other ranks: a short spin, then sleep on a futex, with a look around a few times per second.
#pragma once
#include <time.h>

#include <functional>

#include "codes.h"
#include "futex.h"

namespace ga::vnpu::hccl {

constexpr int64_t kLookAroundMs = 250;   // between checks that the peers live and there is time left
constexpr int64_t kSpinNs = 20000;       // about what falling asleep and being woken costs

inline int64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Where ranks sleep. The word changes whenever what they wait for may have come; then `ring` wakes those who sleep.
struct Bell {
    std::atomic<uint32_t> word;
    std::atomic<uint32_t> sleepers;  // counts too many when a sleeper is killed, which costs a system call, no more

    void ring() {
        if (sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(word);
    }
};

// Whether Ctrl-C was pressed. Only Python's main thread can tell; a signal ends its sleep early.
bool interrupted();

// Returns 0 once done() holds. broken() is asked after each wake-up and is cheap; look_around() is asked a few times
// per second, with whether a signal came. Both return a code to give up with, or 0.
template <class Done, class Broken, class LookAround>
Status wait_until(Bell& bell, bool spin, Done done, Broken broken, LookAround look_around) {
    if (done()) return kOk;
    const int64_t start = now_ns();
    while (spin && now_ns() - start < kSpinNs) {
        for (int i = 0; i < 16; ++i) pause_cpu();
        if (done()) return kOk;
    }
    int64_t next_look = start + kLookAroundMs * 1000000;
    while (true) {
        const uint32_t seen = bell.word.load(std::memory_order_acquire);
        if (done()) return kOk;
        if (const Status code = broken(); code != kOk) return code;
        bell.sleepers.fetch_add(1, std::memory_order_seq_cst);
        const bool changed = bell.word.load(std::memory_order_seq_cst) != seen;
        const int why = changed ? 0 : futex_sleep(bell.word, seen, kLookAroundMs);
        bell.sleepers.fetch_sub(1, std::memory_order_relaxed);
        const bool signal = why == EINTR && interrupted();
        if (!signal && now_ns() < next_look) continue;
        next_look = now_ns() + kLookAroundMs * 1000000;
        if (const Status code = broken(); code != kOk) return code;  // a rank that failed first may be gone by now
        if (const Status code = look_around(signal); code != kOk) return done() ? kOk : code;
    }
}

}  // namespace ga::vnpu::hccl
