// The devices of this process: how many, which one a thread uses, and what they are.
#pragma once
#include <stdint.h>

#include <string>

namespace ga::vnpu {

constexpr int32_t kMaxDevices = 64;

// Set once by the loader, before torch_npu comes.
struct Machine {
    std::string soc = "Ascend910B2";
    std::string cann_version = "9.0.0";
    int32_t devices = 1;
    int64_t memory = int64_t{64} << 30;  // bytes per device
    int64_t cube_cores = 0, vector_cores = 0, l2_bytes = 0, ai_cpus = 0;
    bool bfloat16 = true;
    bool inf_nan = true;
};
Machine& machine();

int32_t current_device();  // of this thread; the default one, or -1, before one was set

// The device of threads that never set one: what a program gives to aclInit. Ignored if it does not exist.
void set_default_device(int32_t device);

}  // namespace ga::vnpu
