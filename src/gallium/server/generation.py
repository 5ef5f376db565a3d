"""The bridge from the engine's thread to the event loop: what one HTTP request has running in the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.types import Receive

from gallium.errors import EngineDead, GalliumError
from gallium.types import Delta, SamplingParams

if TYPE_CHECKING:
    from gallium.engine.async_engine import Engine, RequestHandle


class DisconnectedError(Exception):
    """The client left; what it asked for is cancelled."""


class Generation:
    """One or more prompts, submitted together; all of their choices end, or all are cancelled.

    `registry` holds the generations that are open, so that a stopping server can end them.
    Raises what Engine.submit raises, and then nothing stays queued. Lives in the running event loop.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        registry: set[Generation],
        prediction: Sequence[int] = (),
    ) -> None:
        self._events = asyncio.get_running_loop()
        self._arrived: deque[tuple[int, Delta | GalliumError]] = deque()
        self._wake = asyncio.Event()
        self._signalled = False  # a wake-up is on its way to the event loop
        self._left = len(prompts) * params.n  # choices that have not ended
        self._closed = False  # nobody listens any more
        self._disconnected = False
        self._handles: list[RequestHandle] = []
        self._registry = registry
        try:
            for number, prompt in enumerate(prompts):
                self._handles.append(engine.submit(prompt, params, self._listener(number), prediction=prediction))
        except BaseException:
            self.close()
            raise
        registry.add(self)

    async def batches(self, patience: float | None = None) -> AsyncIterator[list[tuple[int, Delta]]]:
        """(prompt number, delta) in order, all that have arrived at once; [] after `patience` seconds of nothing.

        Raises what the engine reports, and DisconnectedError after `disconnect`.
        """
        while self._left:
            batch: list[tuple[int, Delta]] = []
            failure: GalliumError | None = None
            for number, item in await self._next(patience):
                if isinstance(item, GalliumError):
                    failure = item
                    break
                if item.finish_reason in ("cancelled", "error"):
                    failure = EngineDead(f"the engine ended the answer early ({item.finish_reason}).")
                    break
                self._left -= item.finish_reason is not None
                batch.append((number, item))
            if batch or failure is None:
                yield batch
            if failure is not None:
                raise failure

    def disconnect(self) -> None:
        """Nobody reads any more: cancel, and let `batches` say so."""
        self._disconnected = True
        self.close()
        self._wake.set()

    def abort(self, error: GalliumError) -> None:
        """End with `error`, as if the engine had reported it."""
        self._arrived.append((0, error))
        self._wake.set()

    def close(self) -> None:
        """Cancel what has not ended; its blocks are free in the next step. Safe to call again."""
        self._closed = True
        self._registry.discard(self)
        if self._left:
            for handle in self._handles:
                handle.cancel()

    async def _next(self, patience: float | None) -> list[tuple[int, Delta | GalliumError]]:
        while not self._arrived and not self._disconnected:
            try:
                async with asyncio.timeout(patience):
                    await self._wake.wait()
            except TimeoutError:
                return []
            self._wake.clear()
        if self._disconnected:
            raise DisconnectedError
        self._signalled = False  # before the queue is emptied, or the next arrival could go unheard
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def _listener(self, number: int) -> Callable[[Delta | GalliumError], None]:
        def arrive(item: Delta | GalliumError) -> None:  # in the engine's thread
            if self._closed:  # and the event loop may be gone
                return
            self._arrived.append((number, item))
            if not self._signalled:  # many deltas, one wake-up
                self._signalled = True
                self._events.call_soon_threadsafe(self._wake.set)

        return arrive


@asynccontextmanager
async def attended(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """While this is open, a client that leaves cancels `generation`; at the end nothing of it is left running."""
    watcher = asyncio.create_task(_watch(generation, receive))
    try:
        yield
    finally:
        generation.close()
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _watch(generation: Generation, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.disconnect()
