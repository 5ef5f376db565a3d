// Ranks that are threads of one process, for ThreadSanitizer: all kinds of calls at once on shared memory.
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <thread>
#include <vector>

#include "stream.h"

using Handle = void*;

extern "C" {
int32_t HcclCommInitAll(uint32_t devices, int32_t* numbers, Handle* comms);
int32_t HcclCommDestroy(Handle comm);
int32_t HcclGetCommAsyncError(Handle comm, int32_t* error);
int32_t HcclAllReduce(void*, void*, uint64_t, int32_t, int32_t, Handle, void*);
int32_t HcclAllGather(void*, void*, uint64_t, int32_t, Handle, void*);
int32_t HcclSend(void*, uint64_t, int32_t, uint32_t, Handle, void*);
int32_t HcclRecv(void*, uint64_t, int32_t, uint32_t, Handle, void*);
int32_t HcclBroadcast(void*, uint64_t, int32_t, uint32_t, Handle, void*);
int32_t HcclGroupStart();
int32_t HcclGroupEnd();
}

// What the core library has besides HCCL.
namespace ga::vnpu {
thread_local std::string error_text;
void set_error(std::string text) { error_text = std::move(text); }
Status fail(Status code, std::string text) {
    set_error(std::move(text));
    return code;
}
Status submit(void*, Task task) { return task(); }
}  // namespace ga::vnpu

namespace {

constexpr uint32_t kRanks = 4;
constexpr int32_t kFloat = 4, kSum = 0;

void must(bool good, const char* what) {
    if (good) return;
    printf("FAILED %s: %s\n", what, ga::vnpu::error_text.c_str());
    exit(1);
}

void run(uint32_t rank, Handle comm) {
    for (const uint64_t count : {uint64_t{1}, uint64_t{5000}, uint64_t{400000}}) {
        for (int repeat = 0; repeat < 20; ++repeat) {
            std::vector<float> data(count, static_cast<float>(rank)), sum(count), all(count * kRanks);
            must(HcclAllReduce(data.data(), sum.data(), count, kFloat, kSum, comm, nullptr) == 0, "all_reduce");
            must(sum[count - 1] == 6, "sum");
            const uint32_t right = (rank + 1) % kRanks, left = (rank + kRanks - 1) % kRanks;
            must(HcclSend(data.data(), count, kFloat, right, comm, nullptr) == 0, "send");
            must(HcclRecv(sum.data(), count, kFloat, left, comm, nullptr) == 0, "receive");
            must(sum[0] == static_cast<float>(left), "message");
            must(HcclAllGather(data.data(), all.data(), count, kFloat, comm, nullptr) == 0, "all_gather");
            must(all[2 * count] == 2, "gathered");
        }
    }
}

}  // namespace

int main() {
    std::vector<Handle> comms(kRanks);
    must(HcclCommInitAll(kRanks, nullptr, comms.data()) == 0, "init");
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < kRanks; ++rank) threads.emplace_back(run, rank, comms[rank]);
    threads.emplace_back([&] {  // as torch_npu's watchdog does
        for (int i = 0; i < 1000; ++i) {
            int32_t error = -1;
            must(HcclGetCommAsyncError(comms[0], &error) == 0 && error == 0, "watch");
        }
    });
    for (std::thread& thread : threads) thread.join();

    std::vector<float> values(kRanks);  // all ranks in one thread: a group runs them side by side
    values[0] = 7;
    must(HcclGroupStart() == 0, "group");
    for (uint32_t r = 0; r < kRanks; ++r) {
        must(HcclBroadcast(&values[r], 1, kFloat, 0, comms[r], nullptr) == 0, "broadcast");
    }
    must(HcclGroupEnd() == 0 && values[kRanks - 1] == 7, "group end");
    for (Handle comm : comms) must(HcclCommDestroy(comm) == 0, "destroy");
    printf("ok\n");
    return 0;
}
