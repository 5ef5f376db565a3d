"""Live servers, one of each kind for the whole session, and OpenAI's own clients for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI
from tests.api.serving import BACKEND, PATIENCE_S, Served, served
from tests.api.successors import write_checkpoint

from gallium import LLM

KEY = "a-key"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Served]:
    """The tiny checkpoint behind a port, with a key."""
    with served(str(folder), "--kv-memory", "64MiB", "--api-key", KEY, "--served-name", "org/tiny") as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture
async def async_client(server: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture(scope="session")
def llm(folder: Path) -> Iterator[LLM]:
    """The same checkpoint in this process."""
    with LLM(str(folder), backend=BACKEND, kv_memory="64MiB") as loaded:
        yield loaded
