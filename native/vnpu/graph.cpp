// Captured graphs: begin, end, replay, and groups of tasks that are replaced between replays.
#include "graph.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>

namespace ga::vnpu {
namespace {

std::mutex mutex;
std::set<Graph*> graphs;
std::set<TaskGroup*> groups;
uint32_t next_id = 1;
std::atomic<int> open{0};  // captures and updates that have begun and not ended, of all streams
thread_local int32_t capture_mode = 0;

bool known(Graph* graph) {
    const std::lock_guard<std::mutex> lock(mutex);
    return graphs.count(graph) != 0;
}

bool known(TaskGroup* group) {
    const std::lock_guard<std::mutex> lock(mutex);
    return groups.count(group) != 0;
}

Status no_stream() { return fail(kInvalidHandle, "this stream does not exist, or was destroyed"); }
Status no_graph() { return fail(kInvalidHandle, "this graph does not exist, or was destroyed"); }

Status replace_next(Stream* stream, Task task) {
    TaskGroup* group = stream->updating;
    if (stream->updated >= group->tasks.size()) {
        return fail(kInvalidParameter, "a graph update submits more tasks than the group has (" +
                                           std::to_string(group->tasks.size()) + ")");
    }
    *group->tasks[stream->updated++] = std::move(task);
    return kOk;
}

}  // namespace

bool defers(void* address) {
    if (open.load(std::memory_order_acquire) == 0) return false;  // the usual case, and operators are many
    const Stream* stream = find_stream(address);
    return stream != nullptr && (stream->graph != nullptr || stream->updating != nullptr);
}

Status submit(void* address, Task task) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    if (stream->updating != nullptr) return replace_next(stream, std::move(task));
    if (stream->graph == nullptr) return task();
    const auto kept = std::make_shared<Task>(std::move(task));
    stream->graph->tasks.push_back(kept);
    if (stream->group != nullptr) stream->group->tasks.push_back(kept);
    return kOk;
}

}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT Status aclmdlRICaptureBegin(void* address, int32_t /*mode*/) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    if (stream->graph != nullptr) return fail(kInvalidParameter, "this stream is capturing a graph already");
    Graph* graph = new Graph;
    graph->origin = address;
    open.fetch_add(1);
    stream->graph = graph;
    const std::lock_guard<std::mutex> lock(mutex);
    graph->id = next_id++;
    graphs.insert(graph);
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureGetInfo(void* address, int32_t* status, void** model) {
    const Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    *status = stream->graph != nullptr ? 1 : 0;
    if (model != nullptr) *model = stream->graph;
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureEnd(void* address, void** model) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    Graph* graph = stream->graph;
    if (graph == nullptr) return fail(kInvalidParameter, "this stream is not capturing a graph");
    if (graph->origin != address) return fail(kInvalidParameter, "a capture ends on the stream that began it");
    leave_capture(graph);
    open.fetch_sub(1);
    *model = graph;
    return kOk;
}

GA_EXPORT Status aclmdlRIExecuteAsync(void* model, void* stream) {
    Graph* graph = static_cast<Graph*>(model);
    if (!known(graph)) return no_graph();
    return submit(stream, [graph] {
        for (const auto& task : graph->tasks) {
            if (const Status status = (*task)(); status != kOk) return status;
        }
        return kOk;
    });
}

GA_EXPORT Status aclmdlRIDestroy(void* model) {
    Graph* graph = static_cast<Graph*>(model);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (graphs.erase(graph) == 0) return no_graph();
    }
    delete graph;
    return kOk;
}

GA_EXPORT Status aclmdlRIGetId(void* model, uint32_t* id) {
    Graph* graph = static_cast<Graph*>(model);
    if (!known(graph)) return no_graph();
    *id = graph->id;
    return kOk;
}

// The mode limits which other calls are legal in which thread during a capture; work here is synchronous, so all are.
GA_EXPORT Status aclmdlRICaptureThreadExchangeMode(int32_t* mode) {
    std::swap(*mode, capture_mode);
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureTaskGrpBegin(void* address) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    if (stream->graph == nullptr) return fail(kInvalidParameter, "a task group belongs to a capture: begin one first");
    if (stream->group != nullptr) return fail(kInvalidParameter, "task groups do not nest");
    stream->group = new TaskGroup;
    const std::lock_guard<std::mutex> lock(mutex);
    groups.insert(stream->group);
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureTaskGrpEnd(void* address, void** group) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    if (stream->group == nullptr) return fail(kInvalidParameter, "no task group was begun on this stream");
    *group = stream->group;
    stream->group = nullptr;
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureTaskUpdateBegin(void* address, void* handle) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    TaskGroup* group = static_cast<TaskGroup*>(handle);
    if (!known(group)) return fail(kInvalidHandle, "this task group does not exist");
    if (stream->updating == nullptr) open.fetch_add(1);
    stream->updating = group;
    stream->updated = 0;
    return kOk;
}

GA_EXPORT Status aclmdlRICaptureTaskUpdateEnd(void* address) {
    Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    TaskGroup* group = stream->updating;
    if (group == nullptr) return fail(kInvalidParameter, "no graph update was begun on this stream");
    stream->updating = nullptr;
    open.fetch_sub(1);
    if (stream->updated == group->tasks.size()) return kOk;
    return fail(kInvalidParameter, "a graph update submitted " + std::to_string(stream->updated) +
                                       " tasks, but the group has " + std::to_string(group->tasks.size()));
}
