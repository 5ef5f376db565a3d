"""Loading and converting stream: the file that is read never stands in memory as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoints.safetensors_making import sparse_model

MIB = 1 << 20
LAYERS = 6
REPORT = """
import sys
from pathlib import Path
from gallium.checkpoints import convert, open_checkpoint
from gallium.engine.assembly import assemble
from gallium.settings import EngineSettings

def peak():
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("VmHWM"))

def load(folder):
    settings = EngineSettings(precision="int4", kv_memory=4 << 20, threads=1)
    assemble(folder, settings, need_tokenizer=False).close()

def write(folder):
    convert(open_checkpoint(Path(folder)), Path(folder + "-int4"), "int4")

before = peak()
{"load": load, "convert": write}[sys.argv[1]](sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["load", "convert"])
def test_the_peak_is_the_packed_model_and_a_layer(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "m"
    stored = sparse_model(folder, LAYERS)
    layer = stored // LAYERS
    done = subprocess.run([sys.executable, "-c", REPORT, what, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packed = stored * 5 // 32 if what == "load" else 0
    grown, allowed = int(done.stdout), packed + layer + 60 * MIB  # imports, threads and the cache
    assert allowed < stored * 2 // 3, "the bound would be met without streaming"
    assert grown < allowed, f"{grown // MIB} MiB, stored are {stored // MIB}"
