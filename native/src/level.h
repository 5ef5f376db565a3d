// The instruction-set level in use. Levels are ordered: each can run all code of those below it.
#pragma once

namespace ga {

// amx_emulated runs the AMX code on AVX-512 with tiles in software: for tests, never chosen by itself.
enum class Level { generic = 0, avx2 = 1, avx512 = 2, amx = 3, amx_emulated = 4 };

Level level();

}  // namespace ga
