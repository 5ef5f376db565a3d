// The layout of HcclCommConfig, as far as it means anything here.
#include "config.h"

#include <stddef.h>
#include <string.h>

namespace ga::vnpu::hccl {
namespace {

constexpr size_t kNameBytes = 128;

struct Config {
    uint64_t bytes;          // how much of the structure the caller knows
    uint64_t origin[2];
    uint32_t buffer_size;    // in MB, for transfers between chips
    uint32_t deterministic;  // reductions here always are
    char name[kNameBytes];
};

}  // namespace

Settings settings_from(const void* config) {
    Settings settings = settings_from_environment();
    if (config == nullptr) return settings;
    uint64_t bytes = 0;
    memcpy(&bytes, config, sizeof bytes);
    if (bytes < offsetof(Config, name) + kNameBytes) return settings;
    const char* name = static_cast<const char*>(config) + offsetof(Config, name);
    settings.name.assign(name, strnlen(name, kNameBytes));
    return settings;
}

}  // namespace ga::vnpu::hccl
