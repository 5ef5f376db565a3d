"""Random legal and illegal calls end in a result or a sentence, never in a crash. `make npu-fuzz` makes 10,000."""

from __future__ import annotations

import pytest

pytest.importorskip("torch_npu")

from tools.npu_fuzz.__main__ import FAULTS, results

SEED, CALLS = 7, 100


def test_random_calls_end_in_a_result_or_a_sentence() -> None:
    found = list(results(SEED, 0, CALLS))
    assert len(found) == CALLS
    assert [result for result in found if result.outcome in FAULTS] == []
    assert {result.outcome for result in found} == {"done", "refused"}
