"""One process of the count: takes names of entries on standard input, prints a verdict as a line of JSON for each."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from gallium import vnpu


def main() -> int:
    os.environ["TORCH_NPU_FALLBACK_CPU_DISABLE"] = "1"
    vnpu.install()  # before torch comes
    import torch
    from tools.npu_coverage.judge import entries, judge

    torch.set_num_threads(1)
    dtype = getattr(torch, sys.argv[1])
    backward, limit = sys.argv[2] == "backward", int(sys.argv[3])
    database = entries()
    torch.ones(1).npu().add(1)  # whatever is printed at the start comes before the first verdict
    print("READY", flush=True)
    for line in sys.stdin:
        verdict = judge(line.strip(), database[line.strip()], dtype, backward=backward, limit=limit)
        print("VERDICT " + json.dumps(dataclasses.asdict(verdict)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
