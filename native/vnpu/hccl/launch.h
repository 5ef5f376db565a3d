// From an entry point to a stream: at once, or at the end of a group.
#pragma once
#include <functional>

#include "registry.h"

namespace ga::vnpu::hccl {

// Sends go first at the end of a group, so that ranks which receive from each other do not wait for each other.
enum class Order { sends_first, as_given };

// Submits the task to the stream, which runs it now or records it for a graph. Inside a group it is kept until the end.
Status launch(const CommunicatorPtr& comm, void* stream, Order order, std::function<Status(Communicator&)> task);

// The same for a collective, which needs the communicator's turn.
Status launch_collective(const CommunicatorPtr& comm, void* stream, std::function<Status(Communicator&)> task);

Status begin_group();
Status end_group();

}  // namespace ga::vnpu::hccl
