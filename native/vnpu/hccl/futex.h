// Sleeping on a word of shared memory until another process changes it.
#pragma once
#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>

namespace ga::vnpu::hccl {

static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free);

// Sleeps while the word holds this value, at most so long. Returns 0, EAGAIN, EINTR or ETIMEDOUT.
inline int futex_sleep(std::atomic<uint32_t>& word, uint32_t value, int64_t milliseconds) {
    const timespec limit{milliseconds / 1000, (milliseconds % 1000) * 1000000};
    const long result = syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, value, &limit, nullptr, 0);
    return result == 0 ? 0 : errno;
}

inline void futex_wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace ga::vnpu::hccl
