// Streams and events of the runtime. Everything submitted is complete at once, so waiting never waits.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <set>

#include "device.h"
#include "graph.h"
#include "observer.h"

namespace ga::vnpu {
namespace {

struct Event {
    uint64_t recorded_ns = 0;
    Graph* graph = nullptr;  // recorded on a stream that was capturing
};

std::mutex mutex;
std::map<void*, Stream*> streams;          // owned by their address
std::map<int32_t, Stream*> default_streams;
std::set<void*> events;
int32_t next_stream_id = 0;

uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
}

Stream* new_stream(int32_t device) {
    Stream* stream = new Stream;
    stream->device = device;
    stream->id = next_stream_id++;
    streams[stream] = stream;
    return stream;
}

Event* find_event(void* event) {
    const std::lock_guard<std::mutex> lock(mutex);
    return events.count(event) != 0 ? static_cast<Event*>(event) : nullptr;
}

Status no_stream() { return fail(kInvalidHandle, "this stream does not exist, or was destroyed"); }
Status no_event() { return fail(kInvalidHandle, "this event does not exist, or was destroyed"); }

Status create_event(void** out) {
    if (out == nullptr) return fail(kInvalidParameter, "no place for the event");
    const std::lock_guard<std::mutex> lock(mutex);
    *out = new Event;
    events.insert(*out);
    return kOk;
}

Status create_stream(void** out) {
    if (out == nullptr) return fail(kInvalidParameter, "no place for the stream");
    const int32_t device = current_device();
    if (device < 0) return fail(kNoContext, "no device is set in this thread");
    const std::lock_guard<std::mutex> lock(mutex);
    *out = new_stream(device);
    return kOk;
}

Status check(void* stream) { return find_stream(stream) != nullptr ? kOk : no_stream(); }

// What a capture records has not run: the host must not go on as if it had (with .item() or .cpu(), for instance).
Status capturing() { return fail(kInvalidParameter, "the host cannot wait for a stream that is capturing a graph"); }

Status synchronize(void* address) {
    observe("wait for a stream", 0);
    const Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    return stream->graph != nullptr ? capturing() : kOk;
}

bool captures(int32_t device) {
    const std::lock_guard<std::mutex> lock(mutex);
    return std::any_of(streams.begin(), streams.end(), [device](const auto& entry) {
        return entry.second->device == device && entry.second->graph != nullptr;
    });
}

// A stream that waits for an event recorded under capture joins the capture.
Status wait_for(Stream* stream, const Event* event) {
    if (event->graph != nullptr && stream->graph == nullptr) stream->graph = event->graph;
    return kOk;
}

}  // namespace

Stream* find_stream(void* stream) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (stream != nullptr) {
        const auto found = streams.find(stream);
        return found != streams.end() ? found->second : nullptr;
    }
    const int32_t device = std::max(current_device(), 0);
    Stream*& found = default_streams[device];
    if (found == nullptr) found = new_stream(device);
    return found;
}

void leave_capture(const Graph* graph) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [address, stream] : streams) {
        if (stream->graph == graph) stream->graph = nullptr;
    }
    for (void* address : events) {
        Event* event = static_cast<Event*>(address);
        if (event->graph == graph) event->graph = nullptr;
    }
}

}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT Status aclrtCreateStream(void** out) { return create_stream(out); }

// Priorities and flags say how a chip should schedule; work here is done at once.
GA_EXPORT Status aclrtCreateStreamWithConfig(void** out, uint32_t /*priority*/, uint32_t /*flags*/) {
    return create_stream(out);
}

GA_EXPORT Status aclrtDestroyStream(void* stream) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (streams.erase(stream) == 0) return no_stream();
    delete static_cast<Stream*>(stream);
    return kOk;
}

GA_EXPORT Status aclrtDestroyStreamForce(void* stream) { return aclrtDestroyStream(stream); }

GA_EXPORT Status aclrtStreamGetId(void* address, int32_t* id) {
    const Stream* stream = find_stream(address);
    if (stream == nullptr) return no_stream();
    *id = stream->id;
    return kOk;
}

GA_EXPORT Status aclrtSynchronizeStream(void* stream) { return synchronize(stream); }

GA_EXPORT Status aclrtSynchronizeStreamWithTimeout(void* stream, int32_t /*ms*/) { return synchronize(stream); }

GA_EXPORT Status aclrtSynchronizeDevice() {
    observe("wait for a device", 0);
    if (current_device() < 0) return fail(kNoContext, "no device is set");
    return captures(current_device()) ? capturing() : kOk;
}

GA_EXPORT Status aclrtSynchronizeDeviceWithTimeout(int32_t /*ms*/) { return aclrtSynchronizeDevice(); }

GA_EXPORT Status aclrtStreamQuery(void* stream, int32_t* status) {
    *status = 0;  // complete
    return check(stream);
}

GA_EXPORT Status aclrtCreateEventWithFlag(void** event, uint32_t /*flag*/) { return create_event(event); }

GA_EXPORT Status aclrtCreateEventExWithFlag(void** event, uint32_t /*flag*/) { return create_event(event); }

GA_EXPORT Status aclrtDestroyEvent(void* event) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (events.erase(event) == 0) return no_event();
    delete static_cast<Event*>(event);
    return kOk;
}

GA_EXPORT Status aclrtRecordEvent(void* address, void* stream_address) {
    Event* event = find_event(address);
    const Stream* stream = find_stream(stream_address);
    if (event == nullptr) return no_event();
    if (stream == nullptr) return no_stream();
    event->graph = stream->graph;
    if (stream->graph != nullptr) {
        // The event may be destroyed before the graph runs: torch_npu's dropout does so under capture.
        return submit(stream_address, [address] {
            if (Event* one = find_event(address)) one->recorded_ns = now_ns();
            return kOk;
        });
    }
    event->recorded_ns = now_ns();
    return kOk;
}

GA_EXPORT Status aclrtResetEvent(void* event, void* /*stream*/) {
    // An event may be reset and recorded again; its time stays readable until then, as on the device.
    return find_event(event) != nullptr ? kOk : no_event();
}

GA_EXPORT Status aclrtSynchronizeEvent(void* event) {
    observe("wait for an event", 0);
    return find_event(event) != nullptr ? kOk : no_event();
}

GA_EXPORT Status aclrtStreamWaitEvent(void* stream_address, void* event_address) {
    Stream* stream = find_stream(stream_address);
    const Event* event = find_event(event_address);
    if (stream == nullptr) return no_stream();
    return event == nullptr ? no_event() : wait_for(stream, event);
}

GA_EXPORT Status aclrtQueryEventStatus(void* event, int32_t* status) {
    *status = 1;  // recorded and complete
    return find_event(event) != nullptr ? kOk : no_event();
}

GA_EXPORT Status aclrtQueryEventWaitStatus(void* event, int32_t* status) {
    *status = 0;  // complete
    return find_event(event) != nullptr ? kOk : no_event();
}

GA_EXPORT Status aclrtEventElapsedTime(float* ms, void* start_address, void* end_address) {
    const Event *start = find_event(start_address), *end = find_event(end_address);
    if (start == nullptr || end == nullptr) return no_event();
    if (start->recorded_ns == 0 || end->recorded_ns == 0) {
        return fail(kInvalidParameter, "both events must be recorded before the time between them is asked for");
    }
    *ms = static_cast<float>(static_cast<double>(end->recorded_ns) - static_cast<double>(start->recorded_ns)) / 1e6f;
    return kOk;
}

GA_EXPORT Status aclrtEventGetTimestamp(void* address, uint64_t* microseconds) {
    const Event* event = find_event(address);
    if (event == nullptr) return no_event();
    *microseconds = event->recorded_ns / 1000;
    return kOk;
}

GA_EXPORT Status aclrtLaunchCallback(void (*function)(void*), void* user, int32_t /*block*/, void* stream) {
    return submit(stream, [=] { function(user); return kOk; });
}

GA_EXPORT Status aclrtLaunchHostFunc(void* stream, void (*function)(void*), void* user) {
    return submit(stream, [=] { function(user); return kOk; });
}

GA_EXPORT Status aclrtSubscribeReport(uint64_t /*thread*/, void* stream) { return check(stream); }

GA_EXPORT Status aclrtUnSubscribeReport(uint64_t /*thread*/, void* stream) { return check(stream); }

// torch_npu polls this in a thread of its own. Callbacks run when they are launched, so nothing is ever waiting here.
GA_EXPORT Status aclrtProcessReport(int32_t timeout_ms) {
    const int64_t ms = timeout_ms < 0 ? 1000 : std::max(timeout_ms, 1);
    const timespec pause{ms / 1000, (ms % 1000) * 1000000};
    nanosleep(&pause, nullptr);
    return kOk;
}

// How a stream treats failures and overflow, and what it tells profilers: accepted for every stream that exists.
GA_EXPORT Status aclrtSetStreamFailureMode(void* stream, uint64_t /*mode*/) { return check(stream); }
GA_EXPORT Status aclrtSetStreamOverflowSwitch(void* stream, uint32_t /*on*/) { return check(stream); }
GA_EXPORT Status aclrtGetStreamOverflowSwitch(void* stream, uint32_t* on) {
    *on = 0;
    return check(stream);
}
GA_EXPORT Status aclrtSetStreamAttribute(void* stream, int32_t /*attribute*/, const void* /*value*/) {
    return check(stream);
}
