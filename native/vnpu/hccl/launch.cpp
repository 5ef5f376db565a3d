// Groups of operations, and how an operation gets to its stream.
#include "launch.h"

#include <algorithm>
#include <exception>
#include <map>
#include <thread>
#include <vector>

#include "../stream.h"

namespace ga::vnpu::hccl {
namespace {

struct Pending {
    CommunicatorPtr comm;
    void* stream;
    Order order;
    std::function<Status()> task;
};

// torch_npu opens and closes a group in one thread.
thread_local int depth = 0;
thread_local std::vector<Pending> pending;

Status run_in_order(std::vector<Pending>& tasks) {
    std::stable_partition(tasks.begin(), tasks.end(), [](const Pending& p) { return p.order == Order::sends_first; });
    for (Pending& each : tasks) {
        if (const Status code = submit(each.stream, std::move(each.task)); code != kOk) return code;
    }
    return kOk;
}

struct Outcome {
    Status code = kOk;
    std::string text;
};

// Several ranks of one communicator in one thread: each needs the others to go on, so each gets a thread of its own.
Status run_side_by_side(std::map<Communicator*, std::vector<Pending>>& by_rank) {
    std::vector<Outcome> outcomes(by_rank.size());
    std::vector<std::thread> threads;
    size_t index = 0;
    for (auto& [comm, tasks] : by_rank) {
        Outcome* outcome = &outcomes[index++];
        threads.emplace_back([outcome, list = &tasks] {
            outcome->code = run_in_order(*list);
            if (outcome->code != kOk) outcome->text = "HCCL: an operation of this group failed";
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& [comm, tasks] : by_rank) {
        if (const Status code = comm->broken(); code != kOk) return code;
    }
    for (const Outcome& outcome : outcomes) {
        if (outcome.code != kOk) return fail(outcome.code, outcome.text);
    }
    return kOk;
}

bool shares_a_segment(const std::map<Communicator*, std::vector<Pending>>& by_rank) {
    std::vector<const Segment*> segments;
    for (const auto& [comm, tasks] : by_rank) segments.push_back(comm->segment());
    std::sort(segments.begin(), segments.end());
    return std::adjacent_find(segments.begin(), segments.end()) != segments.end();
}

}  // namespace

Status launch(const CommunicatorPtr& comm, void* stream, Order order, std::function<Status(Communicator&)> task) {
    std::function<Status()> guarded = [comm, work = std::move(task)]() -> Status {
        try {
            return work(*comm);
        } catch (const std::exception& error) {
            return fail(kInternal, std::string("HCCL: ") + error.what());
        }
    };
    if (depth == 0) return submit(stream, std::move(guarded));
    pending.push_back({comm, stream, order, std::move(guarded)});
    return kOk;
}

Status launch_collective(const CommunicatorPtr& comm, void* stream, std::function<Status(Communicator&)> task) {
    return launch(comm, stream, Order::as_given, [work = std::move(task)](Communicator& mine) {
        const auto turn = mine.take_turn();
        return work(mine);
    });
}

Status begin_group() {
    ++depth;
    return kOk;
}

Status end_group() {
    if (depth == 0) return fail(kParameter, "HCCL: HcclGroupEnd without HcclGroupStart");
    if (--depth > 0) return kOk;
    std::vector<Pending> tasks;
    tasks.swap(pending);
    std::map<Communicator*, std::vector<Pending>> by_rank;
    for (const Pending& each : tasks) by_rank[each.comm.get()].push_back(each);
    return shares_a_segment(by_rank) ? run_side_by_side(by_rank) : run_in_order(tasks);
}

}  // namespace ga::vnpu::hccl
