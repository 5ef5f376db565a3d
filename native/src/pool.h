// A persistent thread pool: parallel(tasks, f) runs f(task, worker) for every task and returns when all are done.
#pragma once
#include <stdint.h>

#include <type_traits>

namespace ga {

constexpr int kMaxThreads = 256;

// Threads that take part in parallel(), the caller included; worker numbers lie in [0, threads()).
int threads();

// While one lives, the threads wait for the next job without going to sleep: for calls that follow each other closely.
class StayAwake {
public:
    StayAwake();
    ~StayAwake();
    StayAwake(const StayAwake&) = delete;
    StayAwake& operator=(const StayAwake&) = delete;
};

namespace detail {
using Body = void (*)(void* context, int64_t task, int worker);
void run(int64_t tasks, Body body, void* context);
}  // namespace detail

// Tasks are handed out in order, one by one, to whichever thread is free. A nested call runs inline on its worker.
// Calls from several threads at once wait for each other.
template <class F>
void parallel(int64_t tasks, F&& f) {
    using Function = std::remove_reference_t<F>;
    detail::run(
        tasks,
        [](void* context, int64_t task, int worker) {
            (*static_cast<Function*>(context))(static_cast<int>(task), worker);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace ga
