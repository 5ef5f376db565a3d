// What this machine can do at best: memory bandwidth, and the peak of each kind of product.
#include "gallium/measure.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <chrono>

#include "level.h"
#include "peak_kernels.h"
#include "pool.h"
#include "read_streams.h"

namespace ga {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

volatile uint64_t sink;

constexpr int kSums = 32;  // as many as any portable machine keeps in registers

void burn_floats(int64_t rounds) {
    float sums[kSums], factor[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = factor[i] = 1.0f / static_cast<float>(i + 1);
    for (int64_t n = 0; n < rounds; ++n)
        for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor[i] + factor[i];
    float total = 0.0f;
    for (float one : sums) total += one;
    sink = static_cast<uint64_t>(total);
}

void burn_bytes(int64_t rounds) {
    uint32_t sums[kSums] = {};
    uint8_t left[kSums];
    int8_t right[kSums];
    for (int i = 0; i < kSums; ++i) {
        left[i] = static_cast<uint8_t>(i);
        right[i] = static_cast<int8_t>(i - 30);
    }
    for (int64_t n = 0; n < rounds; ++n)
        for (int i = 0; i < kSums; ++i) {
            sums[i] += static_cast<uint32_t>(left[i] * right[i]);
            ++left[i];  // else the product could be computed once
        }
    for (uint32_t one : sums) sink = sink + one;
}

const PeakKernels& peak_kernels(int64_t kind) {
#if defined(GA_X86)
    if (level() == Level::amx && peak_amx.burn[kind]) return peak_amx;
    if (level() >= Level::avx512) return peak_avx512;
    if (level() == Level::avx2) return peak_avx2;
#elif defined(GA_ARM)
    if (level() == Level::i8mm && peak_i8mm.burn[kind]) return peak_i8mm;
    if (level() >= Level::dotprod && peak_dotprod.burn[kind]) return peak_dotprod;
    if (level() >= Level::neon) return peak_neon;
#endif
    (void)kind;
    return peak_portable;
}

const ReadKernels& read_kernels() {
#if defined(GA_X86)
    if (level() >= Level::avx512) return read_avx512;
    if (level() == Level::avx2) return read_avx2;
#endif
    return read_portable;
}

}  // namespace

const PeakKernels peak_portable = {{2 * kSums, 2 * kSums, 2 * kSums, 2 * kSums},
                                   {burn_floats, burn_floats, burn_bytes, burn_bytes}};
const ReadKernels read_portable = {{read_streams<1>, read_streams<2>, read_streams<4>, read_streams<8>}};

}  // namespace ga

double ga_measure_read(int64_t bytes, int32_t rounds) {
    const int64_t huge = 2 << 20, piece = 8 << 20, pieces = bytes / piece;  // a piece keeps a thread busy for 1 ms
    auto* memory = static_cast<char*>(aligned_alloc(huge, static_cast<size_t>(pieces * piece)));
    if (!memory) return 0.0;
#if defined(MADV_HUGEPAGE)
    madvise(memory, static_cast<size_t>(pieces * piece), MADV_HUGEPAGE);  // where it is refused, with small pages
#endif
    ga::parallel(pieces, [&](int task, int) { memset(memory + task * piece, task + 1, static_cast<size_t>(piece)); });
    double best = 0.0;
    for (int32_t round = 0; round < rounds; ++round)
        for (const auto read : ga::read_kernels().read) {
            const auto start = ga::Clock::now();
            ga::parallel(pieces, [&](int task, int) { ga::sink = read(memory + task * piece, piece); });
            const double rate = static_cast<double>(pieces * piece) / ga::seconds_since(start);
            best = rate > best ? rate : best;
        }
    free(memory);
    return best;
}

double ga_measure_peak(int64_t kind, int32_t rounds) {
    const ga::PeakKernels& kernels = ga::peak_kernels(kind);
    const int64_t tasks = ga::threads(), repeats = 200000;
    double best = 0.0;
    for (int32_t round = 0; round < rounds; ++round) {
        const auto start = ga::Clock::now();
        ga::parallel(tasks, [&](int, int) { kernels.burn[kind](repeats); });
        const double rate =
            static_cast<double>(tasks * repeats * kernels.operations[kind]) / ga::seconds_since(start);
        best = rate > best ? rate : best;
    }
    return best;
}
