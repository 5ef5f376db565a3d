// HcclCommConfig, the structure that torch_npu fills in for a new communicator.
#pragma once
#include "communicator.h"

namespace ga::vnpu::hccl {

// Settings of the environment, with what the structure says in addition; null means no structure.
Settings settings_from(const void* config);

}  // namespace ga::vnpu::hccl
