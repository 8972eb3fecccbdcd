"""Knowing when the last request has been answered, so that a stopping server waits no longer than it must."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.unary import UnaryInterceptor

if TYPE_CHECKING:
    from serving.unary import Context


class CallCounter(UnaryInterceptor):
    """Counts what is under way: unary calls, and what else says so.

    A health Watch lives as long as its client: a server that waited for every stream would always wait out its grace.

    Attributes:
        stopping: Set when the server takes nothing more; streams of images then read no further.
        ended: How many have ended.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.ended = 0
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._idle.is_set()

    async def wait_until_idle(self) -> None:
        """Return when nothing is under way."""
        await self._idle.wait()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count as under way what is done inside."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            self.ended += 1
            if self._calls == 0:
                self._idle.set()

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Count the call while it is answered."""
        del context, method
        with self.counting():
            return await answer()
