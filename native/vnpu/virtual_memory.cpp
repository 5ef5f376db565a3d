// Virtual memory: reserved ranges of addresses, and physical memory (anonymous files) mapped into them.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "device.h"
#include "memory.h"

namespace ga::vnpu {
namespace {

struct Physical {
    int file = -1;
    size_t size = 0;
    int32_t device = 0;
};

std::mutex mutex;
std::map<void*, size_t> ranges;
std::map<void*, size_t> maps;

void* reserve(void* hint, size_t size, int flags) {
    void* range = mmap(hint, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    return range == MAP_FAILED ? nullptr : range;
}

}  // namespace
}  // namespace ga::vnpu

using namespace ga::vnpu;

GA_EXPORT Status aclrtReserveMemAddress(void** out, size_t size, size_t /*alignment*/, void* hint, uint64_t /*flags*/) {
    void* range = reserve(hint, size, 0);
    if (range == nullptr) return fail(kOutOfMemory, "no range of " + std::to_string(size) + " addresses is free");
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    ranges[range] = size;
    *out = range;
    return kOk;
}

GA_EXPORT Status aclrtReleaseMemAddress(void* range) {
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    const auto found = ranges.find(range);
    if (found == ranges.end()) return fail(kInvalidParameter, "this range of addresses was not reserved here");
    munmap(range, found->second);
    ranges.erase(found);
    return kOk;
}

GA_EXPORT Status aclrtMallocPhysical(void** handle, size_t size, const void* /*properties*/, uint64_t /*flags*/) {
    const int32_t device = current_device();
    if (device < 0) return fail(kNoContext, "no device is set in this thread");
    if (const Status status = charge(device, size); status != kOk) return status;
    const int file = static_cast<int>(syscall(SYS_memfd_create, "vnpu", 1u));  // close on exec
    if (file < 0 || ftruncate(file, static_cast<off_t>(size)) != 0) {
        if (file >= 0) close(file);
        credit(device, size);
        return fail(kOutOfMemory, "no memory file of " + std::to_string(size) + " bytes could be made");
    }
    *handle = new Physical{file, size, device};
    return kOk;
}

GA_EXPORT Status aclrtFreePhysical(void* handle) {
    Physical* physical = static_cast<Physical*>(handle);
    if (physical == nullptr) return fail(kInvalidHandle, "no physical memory");
    close(physical->file);
    credit(physical->device, physical->size);
    delete physical;
    return kOk;
}

GA_EXPORT Status aclrtMapMem(void* address, size_t size, size_t offset, void* handle, uint64_t /*flags*/) {
    const Physical* physical = static_cast<const Physical*>(handle);
    if (physical == nullptr || offset + size > physical->size) {
        return fail(kInvalidParameter, "a map beyond the end of the physical memory");
    }
    void* mapped = mmap(address, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, physical->file,
                        static_cast<off_t>(offset));
    if (mapped == MAP_FAILED) return fail(kOutOfMemory, "the physical memory could not be mapped");
    add_block(Block{static_cast<char*>(address), size, physical->device});
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    maps[address] = size;
    return kOk;
}

GA_EXPORT Status aclrtUnmapMem(void* address) {
    const std::lock_guard<std::mutex> lock(ga::vnpu::mutex);
    const auto found = maps.find(address);
    if (found == maps.end()) return fail(kInvalidParameter, "nothing is mapped at this address");
    remove_block(address);
    reserve(address, found->second, MAP_FIXED);
    maps.erase(found);
    return kOk;
}

GA_EXPORT Status aclrtMemExportToShareableHandle(void*, int32_t, uint64_t, uint64_t*) {
    return fail(kNotSupported, "sharing device memory between processes is not emulated by the virtual NPU");
}
GA_EXPORT Status aclrtMemImportFromShareableHandle(uint64_t, int32_t, void**) {
    return fail(kNotSupported, "sharing device memory between processes is not emulated by the virtual NPU");
}
GA_EXPORT Status aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t) {
    return fail(kNotSupported, "sharing device memory between processes is not emulated by the virtual NPU");
}
