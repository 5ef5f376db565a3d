"""The same for aarch64: random calls, compiled for it and run under qemu. Needs a cross compiler and qemu-user."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.vnpu.call_signatures import C_NAMES, draw

SOURCES = Path(__file__).parents[2] / "native" / "vnpu"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
CALLS = 60

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR) and SOURCES.exists()),
    reason=f"{COMPILER} or {EMULATOR} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)",
)

DRIVER = """
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <vector>
#include "error.h"
#include "signature.h"

// Phase one and two without an interpreter: the arguments are printed where Python would be called.
namespace ga::vnpu {
Status call_operator(size_t, const Signature& signature, const uint64_t* words, void*) {
    for (const Parameter& parameter : signature.parameters) {
        const uint64_t word = words[parameter.word];
        float narrow;
        double wide;
        memcpy(&narrow, &word, sizeof narrow);
        memcpy(&wide, &word, sizeof wide);
        switch (parameter.kind) {
            case 'w': printf("%d ", static_cast<int32_t>(word)); break;
            case 'h': printf("%d ", static_cast<int16_t>(word)); break;
            case 'c': printf("%d ", static_cast<int8_t>(word)); break;
            case 'b': printf("%d ", (word & 0xFF) != 0); break;
            case 'f': printf("%a ", static_cast<double>(narrow)); break;
            case 'd': printf("%a ", wide); break;
            default: printf("%" PRId64 " ", static_cast<int64_t>(word)); break;
        }
    }
    printf("\\n");
    return kOk;
}
}  // namespace ga::vnpu

extern "C" int32_t aclnnProbeGetWorkspaceSize();
extern "C" int32_t aclnnProbe(void*, uint64_t, void*, void*);
extern "C" int32_t ga_vnpu_set_signature(int32_t, const char*);

template <class... Types>
void call(const char* kinds, Types... values) {
    uint64_t size = 7;
    void* executor = nullptr;
    ga_vnpu_set_signature(0, kinds);
    auto first = reinterpret_cast<int32_t (*)(Types..., uint64_t*, void**)>(&aclnnProbeGetWorkspaceSize);
    if (first(values..., &size, &executor) != 0 || size != 0) printf("phase one failed ");
    if (aclnnProbe(nullptr, 0, executor, nullptr) != 0) printf("phase two failed ");
}

int main() {
"""


def argument(kind: str, value: object) -> str:
    if kind in "df":
        return f"({C_NAMES[kind]}){float(value).hex()}"  # type: ignore[arg-type]
    if kind == "i" and value == -(1 << 63):
        return "INT64_MIN"
    return f"({C_NAMES[kind]}){int(value)}"  # type: ignore[call-overload]


def printed(kind: str, value: object) -> object:
    return float(value) if kind in "df" else int(value)  # type: ignore[arg-type, call-overload]


def test_every_argument_arrives(tmp_path: Path) -> None:
    source = random.Random(7)
    calls = [draw(source) for _ in range(CALLS)]
    lines = []
    for kinds, values in calls:
        quoted = f'"{kinds}"'
        lines.append(f"    call({', '.join([quoted, *map(argument, kinds, values)])});")
    (tmp_path / "driver.cpp").write_text(DRIVER + "\n".join(lines) + "\n}\n", encoding="utf-8")
    (tmp_path / "stubs.inc").write_text("stub aclnnProbe 0\nsecond aclnnProbe\n", encoding="utf-8")
    (tmp_path / "stub_names.inc").write_text('"Probe",\n', encoding="utf-8")
    parts = [SOURCES / name for name in ("call.cpp", "signature.cpp", "error.cpp", "trampoline_aarch64.S")]
    include = [f"-I{tmp_path}", f"-I{SOURCES}", f"-Wa,-I{tmp_path}"]
    command = [COMPILER, "-std=c++17", "-O1", "-static", *include, "-o", tmp_path / "driver", tmp_path / "driver.cpp"]
    subprocess.run([*map(str, command), *map(str, parts)], check=True)
    done = subprocess.run([EMULATOR, str(tmp_path / "driver")], capture_output=True, text=True, check=True)
    for (kinds, values), line in zip(calls, done.stdout.splitlines(), strict=True):
        found = [
            float.fromhex(word) if kind in "df" else int(word) for kind, word in zip(kinds, line.split(), strict=True)
        ]
        assert found == list(map(printed, kinds, values)), kinds
