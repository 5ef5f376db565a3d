"""docs/ascend.md says of chips and ops what the backend says."""

from __future__ import annotations

from tools.write_ascend_docs import PAGE, page

from gallium.ops.interface import op_names


def test_the_tables_are_what_the_backend_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: GALLIUM_VNPU=1 python -m tools.write_ascend_docs"
    assert all(f"| `{op}` |" in text for op in op_names())
