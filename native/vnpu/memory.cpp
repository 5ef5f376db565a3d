// Allocation, copies and accounting of device memory and pinned host memory.
#include "memory.h"

#include <string.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <iterator>
#include <map>
#include <mutex>
#include <set>

#include "device.h"
#include "observer.h"
#include "stream.h"

namespace ga::vnpu {
namespace {

constexpr size_t kSlack = 512, kPage = 4096;

std::mutex mutex;
std::map<const char*, Block> blocks;  // by their begin
std::set<const void*> registered_within;  // addresses inside such blocks
std::array<int64_t, kMaxDevices> used{}, peak{};
std::atomic<uint64_t> generation{0};

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Pages of its own, aligned far beyond 512 bytes, untouched until they are used.
char* take_pages(size_t bytes) {
    void* range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? nullptr : static_cast<char*>(range);
}

Status allocate(void** out, size_t size, int32_t device) {
    if (out == nullptr || size == 0) return fail(kInvalidParameter, "an allocation needs a size and a place for its address");
    if (size > (size_t{1} << 50)) return fail(kOutOfMemory, "an allocation of " + std::to_string(size) + " bytes");
    const size_t bytes = round_up(size + kSlack, kPage);
    if (device != kHost) {
        if (const Status status = charge(device, bytes); status != kOk) return status;
    }
    char* begin = take_pages(bytes);
    if (begin == nullptr) {
        if (device != kHost) credit(device, bytes);
        return fail(kOutOfMemory, "this machine has no room for " + std::to_string(size) + " bytes");
    }
    add_block(Block{begin, bytes, device});
    *out = begin;
    return kOk;
}

bool exact_block(const void* begin, Block* out) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = blocks.find(static_cast<const char*>(begin));
    if (found == blocks.end()) return false;
    *out = found->second;
    return true;
}

Status release(void* address, bool host) {
    if (address == nullptr) return kOk;
    Block block;
    if (!exact_block(address, &block) || (block.device == kHost) != host) {
        return fail(kInvalidParameter, "this address was not allocated here, or was freed before");
    }
    remove_block(address);
    if (!host) credit(block.device, block.size);
    munmap(block.begin, block.size);
    return kOk;
}

// A copy must lie inside the device's memory on its device sides.
Status check_side(const void* address, size_t bytes, bool device_side, const char* name) {
    if (!device_side || bytes == 0) return kOk;
    Block block;
    if (!find_block(address, &block)) {
        return fail(kInvalidParameter, std::string(name) + " of the copy is not device memory");
    }
    if (static_cast<const char*>(address) + bytes <= block.begin + block.size) return kOk;
    return fail(kInvalidParameter, std::string(name) + " of the copy ends outside of its allocation");
}

Status check_copy(const void* to, size_t room, const void* from, size_t bytes, int32_t kind) {
    if (bytes > room) {
        return fail(kInvalidParameter, "a copy of " + std::to_string(bytes) + " bytes into " + std::to_string(room));
    }
    if (kind < 0 || kind > 7) return fail(kInvalidParameter, "unknown kind of copy " + std::to_string(kind));
    const bool to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;
    if (const Status status = check_side(to, bytes, to_device, "the target"); status != kOk) return status;
    return check_side(from, bytes, from_device, "the source");
}

void tell_copy(size_t bytes, int32_t kind) {
    if (kind == 1) observe("copy host to device", static_cast<int64_t>(bytes));
    if (kind == 2) observe("copy device to host", static_cast<int64_t>(bytes));
}

}  // namespace

bool find_block(const void* address, Block* out) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto after = blocks.upper_bound(static_cast<const char*>(address));
    if (after == blocks.begin()) return false;
    *out = std::prev(after)->second;
    if (static_cast<const char*>(address) >= out->begin + out->size) return false;
    for (; after != blocks.end() && after->first == out->begin + out->size && after->second.device == out->device; ++after) {
        out->size += after->second.size;
    }
    return true;
}

void add_block(const Block& block) {
    const std::lock_guard<std::mutex> lock(mutex);
    blocks[block.begin] = block;
}

bool remove_block(const void* begin) {
    generation.fetch_add(1);
    const std::lock_guard<std::mutex> lock(mutex);
    return blocks.erase(static_cast<const char*>(begin)) != 0;
}

Status charge(int32_t device, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    int64_t& mine = used[static_cast<size_t>(device)];
    const int64_t total = machine().memory;
    if (mine + static_cast<int64_t>(bytes) > total) {
        return fail(kOutOfMemory, "device " + std::to_string(device) + " has " + std::to_string(total) + " bytes, " +
                                      std::to_string(mine) + " of them in use: no room for " + std::to_string(bytes));
    }
    mine += static_cast<int64_t>(bytes);
    int64_t& most = peak[static_cast<size_t>(device)];
    if (mine > most) most = mine;
    return kOk;
}

void credit(int32_t device, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    used[static_cast<size_t>(device)] -= static_cast<int64_t>(bytes);
}

uint64_t memory_generation() { return generation.load(std::memory_order_relaxed); }

}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT Status aclrtMalloc(void** out, size_t size, int32_t /*policy*/) {
    const int32_t device = current_device();
    if (device < 0) return fail(kNoContext, "no device is set in this thread");
    return allocate(out, size, device);
}

GA_EXPORT Status aclrtMallocAlign32(void** out, size_t size, int32_t policy) { return aclrtMalloc(out, size, policy); }
GA_EXPORT Status aclrtFree(void* address) { return release(address, false); }
GA_EXPORT Status aclrtMallocHost(void** out, size_t size) { return allocate(out, size, kHost); }
GA_EXPORT Status aclrtMallocHostWithCfg(void** out, uint64_t size, const void* /*config*/) {
    return allocate(out, size, kHost);
}
GA_EXPORT Status aclrtFreeHost(void* address) { return release(address, true); }

GA_EXPORT Status aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, int32_t kind) {
    if (const Status status = check_copy(to, room, from, bytes, kind); status != kOk) return status;
    tell_copy(bytes, kind);
    memmove(to, from, bytes);
    return kOk;
}

GA_EXPORT Status aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes, int32_t kind, void* stream) {
    if (const Status status = check_copy(to, room, from, bytes, kind); status != kOk) return status;
    tell_copy(bytes, kind);
    return submit(stream, [=] { memmove(to, from, bytes); return kOk; });
}

GA_EXPORT Status aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t bytes, int32_t kind,
                                               void* stream) {
    return aclrtMemcpyAsync(to, room, from, bytes, kind, stream);
}

GA_EXPORT Status aclrtMemset(void* to, size_t room, int32_t value, size_t bytes) {
    if (bytes > room) return fail(kInvalidParameter, "a fill of more bytes than there is room for");
    memset(to, value, bytes);
    return kOk;
}

GA_EXPORT Status aclrtMemsetAsync(void* to, size_t room, int32_t value, size_t bytes, void* stream) {
    if (bytes > room) return fail(kInvalidParameter, "a fill of more bytes than there is room for");
    return submit(stream, [=] { memset(to, value, bytes); return kOk; });
}

GA_EXPORT Status aclrtGetMemInfo(int32_t /*kind*/, size_t* free_bytes, size_t* total) {
    const int32_t device = current_device();
    if (device < 0) return fail(kNoContext, "no device is set in this thread");
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    *total = static_cast<size_t>(machine().memory);
    *free_bytes = *total - static_cast<size_t>(used[static_cast<size_t>(device)]);
    return kOk;
}

// The most bytes that were in use at a time.
GA_EXPORT int64_t ga_vnpu_peak_memory(int32_t device) {
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    return peak[static_cast<size_t>(device)];
}

// Memory that aclrtMallocHost gave is known already: only that it is registered is noted.
GA_EXPORT Status aclrtHostRegister(void* address, uint64_t size, int32_t /*type*/, void** device_address) {
    if (Block block; find_block(address, &block)) {
        const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
        ga::vnpu::registered_within.insert(address);
    } else {
        add_block(Block{static_cast<char*>(address), size, kHost});
    }
    *device_address = address;  // one address space
    return kOk;
}

GA_EXPORT Status aclrtHostUnregister(void* address) {
    {
        const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
        if (ga::vnpu::registered_within.erase(address) != 0) return kOk;
    }
    if (remove_block(address)) return kOk;
    return fail(kInvalidParameter, "this host memory was not registered");
}

namespace {

// What torch_npu reads: where the memory lies. The rest of the structure is cleared.
struct PointerAttributes {
    uint32_t id;
    int32_t type;  // 0 host, 1 device, 2 unregistered host memory
    uint32_t page_size;
    uint32_t reserved[4];
};

}  // namespace

GA_EXPORT Status aclrtPointerGetAttributes(const void* address, void* out) {
    Block block;
    const bool known_block = find_block(address, &block);
    PointerAttributes attributes{0, 2, 0, {0, 0, 0, 0}};
    if (known_block && block.device == kHost) attributes.type = 0;
    if (known_block && block.device != kHost) {
        attributes.type = 1;
        attributes.id = static_cast<uint32_t>(block.device);
    }
    memcpy(out, &attributes, sizeof attributes);
    return kOk;
}
