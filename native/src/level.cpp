// Finds out which instruction sets this machine has and the operating system saves.
#include "level.h"

#include "gallium/level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ga {
namespace {

#if defined(__x86_64__)
constexpr const char* kNames[] = {"generic", "avx2", "avx512", "amx", "amx-emulated"};

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned sub) {
    Registers r;
    __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
    return r;
}

unsigned long long enabled_state() {
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

// Linux gives tile state only to processes that ask for it.
bool tiles_permitted() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

Level detect() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
    if (!bit(one.c, 27)) return Level::generic;  // OSXSAVE
    const auto state = enabled_state();
    constexpr unsigned long long kHalves = 0x6, kVectors = 0xe6, kTiles = 0x60000;
    const bool halves = bit(one.c, 12) && bit(one.c, 28) && bit(one.c, 29) && bit(seven.b, 5);  // FMA AVX F16C AVX2
    if (!halves || (state & kHalves) != kHalves) return Level::generic;
#if defined(GA_EMULATE_LEVELS)
    return Level::avx2;  // what is above runs in software in this build, and only if it is asked for
#endif
    const bool foundation = bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);  // F DQ BW VL
    const bool extensions = bit(seven.c, 11) && bit(more.a, 5);                                            // VNNI BF16
    if (!foundation || !extensions || (state & kVectors) != kVectors) return Level::avx2;
    const bool tiles = bit(seven.d, 24) && bit(seven.d, 22) && bit(seven.d, 25);  // TILE BF16 INT8
    if (!tiles || (state & kTiles) != kTiles || !tiles_permitted()) return Level::avx512;
    return Level::amx;
}
#elif defined(__aarch64__)
constexpr const char* kNames[] = {"generic", "neon", "dotprod", "i8mm"};

struct Features {
    bool dotprod = false, i8mm = false, bf16 = false;
};

#if defined(__linux__)
// The kernel's numbers, which older headers lack.
Features features() {
    constexpr unsigned long kDotProduct = 1ul << 20, kMatrixInt8 = 1ul << 13, kBfloat16 = 1ul << 14;
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return {(first & kDotProduct) != 0, (second & kMatrixInt8) != 0, (second & kBfloat16) != 0};
}
#elif defined(__APPLE__)
bool feature(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

Features features() {
    return {feature("hw.optional.arm.FEAT_DotProd"), feature("hw.optional.arm.FEAT_I8MM"),
            feature("hw.optional.arm.FEAT_BF16")};
}
#else
Features features() { return {}; }
#endif

// NEON belongs to every arm64 processor. Armv8.6 has all of the rest; before it, each is an option of its own.
Level detect() {
    const Features has = features();
    if (!has.dotprod) return Level::neon;
    return has.i8mm && has.bf16 ? Level::i8mm : Level::dotprod;
}
#else
constexpr const char* kNames[] = {"generic"};

Level detect() { return Level::generic; }
#endif

Level best() {
    static const Level found = detect();
    return found;
}

Level chosen = best();

}  // namespace

Level level() { return chosen; }

}  // namespace ga

int32_t ga_best_level(void) { return static_cast<int32_t>(ga::best()); }

int32_t ga_level(void) { return static_cast<int32_t>(ga::level()); }

const char* ga_level_name(int32_t level) {
    constexpr int32_t count = sizeof ga::kNames / sizeof *ga::kNames;
    return level >= 0 && level < count ? ga::kNames[level] : nullptr;
}

#if defined(__x86_64__)
int32_t ga_emulated(int32_t level) {
    if (level == static_cast<int32_t>(ga::Level::amx_emulated)) return 1;
#if defined(GA_EMULATE_LEVELS)
    return level == static_cast<int32_t>(ga::Level::avx512);
#else
    return 0;
#endif
}
#else
int32_t ga_emulated(int32_t) { return 0; }
#endif

int32_t ga_has_level(int32_t level) {
#if defined(__x86_64__)
#if defined(GA_EMULATE_LEVELS)
    constexpr ga::Level kNeeded = ga::Level::avx2;
#else
    constexpr ga::Level kNeeded = ga::Level::avx512;
#endif
    const bool emulated = ga_emulated(level) && ga::best() >= kNeeded;
#else
    const bool emulated = false;
#endif
    return level >= 0 && (level <= ga_best_level() || emulated);
}

int32_t ga_set_level(int32_t level) {
    if (!ga_has_level(level)) return -1;
    ga::chosen = static_cast<ga::Level>(level);
    return 0;
}
