"""Knowing when the last request has been answered, so that a stopping server waits no longer than it must."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from serving.unary import UnaryInterceptor

if TYPE_CHECKING:
    from serving.unary import Context


class CallCounter(UnaryInterceptor):
    """Counts the unary calls under way.

    A health Watch lives as long as its client: a server that waited for every stream would always wait out its grace.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_until_idle(self) -> None:
        """Return when no unary call is under way."""
        await self._idle.wait()

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Count the call while it is answered."""
        del context, method
        self._calls += 1
        self._idle.clear()
        try:
            return await answer()
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()
