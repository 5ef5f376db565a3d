// Streams, events and graphs. Work is done when it is submitted, in the submitting thread, or recorded while the stream
// captures a graph.
#pragma once
#include <stdint.h>

#include <functional>

#include "error.h"

namespace ga::vnpu {

using Task = std::function<Status()>;

// Runs the task now, or appends it to the graph that the stream is capturing. A null stream is the device's default one.
Status submit(void* stream, Task task);

// Whether work on this stream is kept for later: it captures a graph, or replaces the tasks of one.
bool defers(void* stream);

}  // namespace ga::vnpu
