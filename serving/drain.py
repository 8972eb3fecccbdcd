"""Counts the calls in progress, so that a stopping server waits for the last one and no longer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.calls import asked_by_probes
from serving.errors import StoppingError
from serving.handlers import UnaryInterceptor, parts_of
from serving.statuses import abort

if TYPE_CHECKING:
    from serving.handlers import Context, Handler


class CallCounter(UnaryInterceptor):
    """Counts calls in progress: unary calls, and whatever runs within `counting`.

    A health Watch lives as long as its client, so a server that waited for every stream would always use up its grace
    period. Therefore streams of probes are ended once a stopping server is idle, and only those: a call whose request
    is still being received is not counted here, and gRPC waits for it.

    Attributes:
        stopping: Set when the server accepts no more requests; streams of images then stop reading.
        stopped: Set when no call is in progress any more; streams of probes then end.
        ended: How many of the counted calls have ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()
        self.ended = 0
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether no call is in progress."""
        return self._idle.is_set()

    async def wait_until_idle(self) -> None:
        """Return when no call is in progress."""
        await self._idle.wait()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the block as a call in progress."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            self.ended += 1
            if self._calls == 0:
                self._idle.set()

    def wrap(self, handler: "Handler", method: str) -> "Handler":
        """Wrap a method's handler."""
        if handler.unary_unary is not None or not asked_by_probes(method.removeprefix("/")):
            return super().wrap(handler, method)
        if (parts := parts_of(handler)) is None:
            return handler
        make, inner = parts

        async def until_stopped(request: Any, context: "Context") -> None:
            answering = asyncio.create_task(inner(request, context))
            stopped = asyncio.create_task(self.stopped.wait())
            try:
                await asyncio.wait({answering, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    await abort(context, StoppingError("the server is stopping; continue with another server"), method)
                answering.result()
            finally:
                answering.cancel()
                stopped.cancel()

        return make(until_stopped, handler.request_deserializer, handler.response_serializer)

    async def around(self, answer: Callable[[], Awaitable[Any]], context: "Context", method: str) -> Any:
        """Count the call while it is answered."""
        del context, method
        with self.counting():
            return await answer()
