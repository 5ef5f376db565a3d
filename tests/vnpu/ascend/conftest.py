"""The blocked format, which the Ascend backend allows for its process, is forbidden again for the tests that follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch_npu


@pytest.fixture(scope="module", autouse=True)
def _internal_formats() -> Iterator[None]:
    torch_npu.npu.config.allow_internal_format = True
    yield
    torch_npu.npu.config.allow_internal_format = False
