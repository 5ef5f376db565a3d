// A captured graph: tasks in order, some of them in groups whose tasks can be replaced.
#pragma once
#include <stdint.h>

#include <memory>
#include <vector>

#include "stream.h"

namespace ga::vnpu {

struct Graph {
    uint32_t id = 0;
    std::vector<std::shared_ptr<Task>> tasks;
    void* origin = nullptr;          // the stream that began the capture
};

// Tasks of a graph that a program may replace before it replays (sequence lengths of attention, for instance).
struct TaskGroup {
    std::vector<std::shared_ptr<Task>> tasks;
};

struct Stream {
    int32_t device = 0;
    int32_t id = 0;
    Graph* graph = nullptr;          // being captured into
    TaskGroup* group = nullptr;      // tasks captured now belong to it as well
    TaskGroup* updating = nullptr;   // tasks submitted now replace those of this group, in order
    size_t updated = 0;
};

// The stream at this address (null: the current device's default stream), or null if there is none.
Stream* find_stream(void* stream);

// All streams that capture into this graph stop doing so.
void leave_capture(const Graph* graph);

}  // namespace ga::vnpu
