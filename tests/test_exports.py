"""The public names, and what importing them brings in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import gallium


def test_every_public_name_resolves() -> None:
    assert sorted(gallium.__all__) == ["Completion", "GalliumError", "LLM", "SamplingParams", "__version__"]
    for name in gallium.__all__:
        assert getattr(gallium, name) is getattr(gallium, name)
    assert gallium.LLM.__name__ == "LLM" and issubclass(gallium.GalliumError, Exception)


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from gallium import *", names)
    assert set(gallium.__all__) <= names.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gallium' has no attribute 'Llm'"):
        gallium.Llm  # noqa: B018


NOT_FOR_A_MODEL_THAT_IS_HERE = {
    "click", "email", "fastapi", "fractions", "importlib.metadata", "jinja2", "multiprocessing", "pydantic", "rich",
    "statistics", "subprocess", "tokenizers", "gallium.checkpoints.gguf_file", "gallium.checkpoints.hub",
    "gallium.checkpoints.modelslim", "gallium.checkpoints.packed_file", "gallium.checkpoints.writing",
    "gallium.engine.draft_loading", "gallium.engine.draft_model", "gallium.engine.rank_runner",
    "gallium.engine.tracing", "gallium.text.builtin",
}  # fmt: skip
"""What an import of the engine must not bring in: a start would wait for it."""


def loaded_after(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after one statement."""
    program = f"{statement}\nimport sys\nfound = sorted(sys.modules)\nimport json\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout))


def modules_after(statement: str) -> set[str]:
    """The same, top-level modules."""
    return {name.partition(".")[0] for name in loaded_after(statement)}


def test_importing_gallium_imports_nothing_but_the_standard_library() -> None:
    after = modules_after("import gallium") - modules_after("pass")
    assert after - sys.stdlib_module_names == {"gallium"}


def test_the_engine_imports_only_what_every_start_needs() -> None:
    assert not loaded_after("from gallium import LLM") & NOT_FOR_A_MODEL_THAT_IS_HERE


@pytest.mark.parametrize(
    "statement",
    [
        "from gallium import LLM, SamplingParams",
        "import gallium.cli.main, gallium.server.app",
        "from gallium.ops.backend import installed; installed()",
    ],
)
def test_nothing_of_gallium_imports_torch(statement: str) -> None:
    after = modules_after(statement)
    assert "gallium" in after and not after & {"torch", "transformers", "tensorflow"}
