"""What the Ascend backend sets for its process is taken back after its tests: the blocked format, no move to a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch_npu

NO_FALLBACK = "TORCH_NPU_FALLBACK_CPU_DISABLE"


@pytest.fixture(scope="module", autouse=True)
def _process_settings() -> Iterator[None]:
    before = os.environ.get(NO_FALLBACK)
    torch_npu.npu.config.allow_internal_format = True
    yield
    torch_npu.npu.config.allow_internal_format = False
    if before is None:
        os.environ.pop(NO_FALLBACK, None)
    else:
        os.environ[NO_FALLBACK] = before
