// The instruction-set level in use. Levels are ordered: each can run all code of those below it.
#pragma once

namespace ga {

// Each architecture has its own; what it has none of is called generic.
#if defined(__x86_64__)
// amx_emulated runs the AMX code on AVX-512 with tiles in software: for tests, never chosen by itself.
enum class Level { generic = 0, avx2 = 1, avx512 = 2, amx = 3, amx_emulated = 4 };
#elif defined(__aarch64__)
enum class Level { generic = 0, neon = 1, dotprod = 2, i8mm = 3 };
#else
enum class Level { generic = 0 };
#endif

Level level();

}  // namespace ga
