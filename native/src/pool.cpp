// The thread pool: workers spin for a moment after each job, then sleep, because machines are shared.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "gallium/threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ga {
namespace {

constexpr auto kSpin = std::chrono::microseconds(40);

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::atomic<int> stay_awake{0};
std::vector<int32_t> pinned_to;  // the CPU of each worker; those past the end go where the system puts them

#if defined(__linux__)
bool may_use(int32_t cpu) {
    cpu_set_t allowed;
    return cpu >= 0 && cpu < CPU_SETSIZE && sched_getaffinity(0, sizeof allowed, &allowed) == 0 &&
           CPU_ISSET(cpu, &allowed);
}

void pin(std::thread& thread, int32_t cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);
}
#else
bool may_use(int32_t) { return false; }
void pin(std::thread&, int32_t) {}
#endif

// A job's tasks are claimed from one counter that also holds the job's number. A helper that wakes up late, or that the
// system does not let run, finds another number and takes nothing: the caller waits for claimed tasks only, not for
// helpers.
class Pool {
public:
    explicit Pool(int count) : count_(count) {
        for (int worker = 1; worker < count; ++worker) {
            helpers_.emplace_back([this, worker] { serve(worker); });
            if (worker < static_cast<int>(pinned_to.size())) pin(helpers_.back(), pinned_to[worker]);
        }
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            number_.fetch_add(1);
        }
        wake_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    int count() const { return count_; }

    void run(int64_t tasks, detail::Body body, void* context) {
        std::lock_guard<std::mutex> one_at_a_time(callers_);
        const uint32_t number = number_.load(std::memory_order_relaxed) + 1;
        // Closed first: a helper that is still at the old job's end could take this job's count for the old one's, and
        // claim a task that the old job does not have.
        next_.store(static_cast<uint64_t>(number) << 32 | kClosed, std::memory_order_relaxed);
        body_.store(body, std::memory_order_release);
        context_.store(context, std::memory_order_release);
        tasks_.store(tasks, std::memory_order_release);
        done_.store(0, std::memory_order_relaxed);
        next_.store(static_cast<uint64_t>(number) << 32, std::memory_order_release);
        {
            std::lock_guard<std::mutex> lock(mutex_);  // no helper falls asleep between its look and this
            number_.store(number, std::memory_order_release);
        }
        if (sleepers_.load() > 0) wake_.notify_all();
        work(number, 0);
        for (int turn = 0; done_.load(std::memory_order_acquire) != tasks; ++turn) {
            if (turn < kTurnsBeforeYield)
                relax();
            else
                std::this_thread::yield();  // the core may be what the other thread is waiting for
        }
    }

private:
    static constexpr int kTurnsBeforeYield = 2000;
    static constexpr uint64_t kClosed = 0xFFFFFFFFu;  // a task that no job has

    // Takes tasks of job `number` until there are none. What is read of the job is good whenever a claim succeeds: the
    // job can't be replaced before its tasks are done, and whoever has seen a part of the next job finds next_ changed.
    void work(uint32_t number, int worker) {
        uint64_t seen = next_.load(std::memory_order_acquire);
        while (static_cast<uint32_t>(seen >> 32) == number) {
            const auto task = static_cast<int64_t>(seen & 0xFFFFFFFFu);
            const detail::Body body = body_.load(std::memory_order_acquire);
            void* context = context_.load(std::memory_order_acquire);
            if (task >= tasks_.load(std::memory_order_acquire)) return;
            if (!next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            body(context, task, worker);
            done_.fetch_add(1, std::memory_order_release);
            seen = next_.load(std::memory_order_acquire);
        }
    }

    // Waits for a job other than `seen`: first spinning, then asleep.
    uint32_t await(uint32_t seen) {
        auto end = std::chrono::steady_clock::now() + kSpin;
        for (auto now = end - kSpin; now < end; now = std::chrono::steady_clock::now()) {
            for (int i = 0; i < 32; ++i) {
                const uint32_t found = number_.load(std::memory_order_acquire);
                if (found != seen) return found;
                relax();
            }
            if (stay_awake.load(std::memory_order_relaxed) > 0) {
                std::this_thread::yield();  // nobody is kept off this core by a thread that only waits
                end = now + kSpin;
            }
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return number_.load() != seen; });
        sleepers_.fetch_sub(1);
        return number_.load();
    }

    void serve(int worker);

    const int count_;
    std::vector<std::thread> helpers_;
    std::mutex callers_, mutex_;
    std::condition_variable wake_;
    std::atomic<bool> stopping_{false};
    std::atomic<detail::Body> body_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int64_t> tasks_{0};
    alignas(64) std::atomic<uint32_t> number_{0};
    alignas(64) std::atomic<uint64_t> next_{0};  // job's number, then its next task
    alignas(64) std::atomic<int64_t> done_{0};
    std::atomic<int> sleepers_{0};
};

thread_local bool inside_job = false;

void Pool::serve(int worker) {
    inside_job = true;
    uint32_t seen = 0;
    for (;;) {
        seen = await(seen);
        if (stopping_) return;
        work(seen, worker);
    }
}

std::mutex pool_mutex;
std::atomic<Pool*> pool{nullptr};
int wanted = 1;

// A forked child has none of its parent's threads: it forgets the pool and makes a new one when it needs it.
void forget_after_fork() {
    pool.store(nullptr);
    stay_awake.store(0);
    new (&pool_mutex) std::mutex;
}

Pool& current() {
    if (Pool* p = pool.load(std::memory_order_acquire)) return *p;
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool.load()) {
        static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
        (void)registered;
        pool.store(new Pool(wanted), std::memory_order_release);
    }
    return *pool.load();
}

}  // namespace

StayAwake::StayAwake() { stay_awake.fetch_add(1); }

StayAwake::~StayAwake() { stay_awake.fetch_sub(1); }

int threads() { return current().count(); }

void detail::run(int64_t tasks, Body body, void* context) {
    if (tasks <= 0) return;
    if (inside_job || tasks == 1 || current().count() == 1) {
        for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
        return;
    }
    inside_job = true;
    current().run(tasks, body, context);
    inside_job = false;
}

}  // namespace ga

int32_t ga_set_threads(int32_t count) {
    if (count < 1 || count > ga::kMaxThreads) return -1;
    std::lock_guard<std::mutex> lock(ga::pool_mutex);
    ga::wanted = count;
    ga::Pool* old = ga::pool.load();
    if (old && old->count() == count) return 0;
    ga::pool.store(nullptr);
    delete old;
    return 0;
}

int32_t ga_pin_threads(const int32_t* cpus, int32_t count) {
    std::lock_guard<std::mutex> lock(ga::pool_mutex);
    for (int32_t i = 0; i < count; ++i)
        if (!ga::may_use(cpus[i])) return -1;
    ga::pinned_to.assign(cpus, cpus + count);
    delete ga::pool.exchange(nullptr);
    return 0;
}

int32_t ga_threads(void) { return ga::threads(); }
