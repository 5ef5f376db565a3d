// The layout of HcclCommConfig, as far as it means anything here.
#include "config.h"

#include <stddef.h>
#include <string.h>

namespace ga::vnpu::hccl {
namespace {

constexpr size_t kNameBytes = 128;

// Found by giving torch_npu 2.13.0 options with known values and looking where they are.
struct Config {
    uint64_t bytes;             // of the structure, as the caller knows it
    uint64_t origin[2];
    uint32_t buffer_megabytes;  // for transfers between chips
    uint32_t deterministic;     // reductions here always are
    char name[kNameBytes];
    char description[kNameBytes];
    uint32_t transport[7];      // where operations are unfolded, and how a network treats them
    int32_t seconds;            // limit of a wait; -1: not set
};
static_assert(offsetof(Config, name) == 32 && offsetof(Config, seconds) == 316);

}  // namespace

Settings settings_from(const void* config) {
    Settings settings = settings_from_environment();
    if (config == nullptr) return settings;
    uint64_t bytes = 0;
    memcpy(&bytes, config, sizeof bytes);
    const auto* given = static_cast<const Config*>(config);
    if (bytes >= offsetof(Config, description)) settings.name.assign(given->name, strnlen(given->name, kNameBytes));
    if (bytes >= sizeof(Config) && given->seconds > 0) settings.seconds = given->seconds;
    return settings;
}

}  // namespace ga::vnpu::hccl
