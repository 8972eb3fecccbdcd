"""How much the holder of a token may ask for."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from serving.errors import AllowanceError

_Request = TypeVar("_Request")

_BUSY_RETRY_S = 0.25


class Allowance:
    """Limits requests per second, by a token bucket that holds those of one second, and concurrent calls.

    It is for use in one event loop.

    Args:
        rate: Requests per second; None for no limit.
        concurrent: Most calls at a time. A stream counts as one call, and so does work that a cancelled call leaves in
            a thread. Besides these there may be as many answers that the client has not read. None for no limit.

    Attributes:
        calls: Number of calls in progress.
        unread: Number of answers that are made and not sent yet.
    """

    def __init__(self, rate: float | None = None, concurrent: int | None = None) -> None:
        self._rate = rate
        self._most = max(1.0, rate or 0.0)
        self._left = self._most
        self._seen = time.monotonic()
        self._concurrent = concurrent
        self.calls = 0
        self.unread = 0
        self._counting = threading.Lock()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call while the block runs.

        Raises:
            AllowanceError: The limit is reached.
        """
        if self._concurrent is not None and self.calls >= self._concurrent:
            raise AllowanceError(
                f"{self.calls} calls with this token are under way, as many as it may have; ask again later",
                _BUSY_RETRY_S,
            )
        # gRPC may report an answer as sent only after its client has read it and made the next call.
        if self._concurrent is not None and self.calls + self.unread >= 2 * self._concurrent:
            raise AllowanceError(
                f"{self.unread} answers to this token have not been read, as many as it may have; read them, and ask"
                " again later",
                _BUSY_RETRY_S,
            )
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Count an answer while it is held, which is until its client has read it."""
        self.unread += 1
        try:
            yield
        finally:
            self.unread -= 1

    def outlast(self, work: Future[Any]) -> None:
        """Count work that continues in a thread after its call has ended as a call until it is done."""
        self._count(1)
        work.add_done_callback(lambda _: self._count(-1))

    def _count(self, more: int) -> None:
        with self._counting:
            self.calls += more

    def take(self) -> None:
        """Take one request from the bucket.

        Raises:
            AllowanceError: It is empty; the error says how long to wait.
        """
        if wait_s := self._wait_s():
            wait_s = math.ceil(wait_s * 1000) / 1000  # clients are told milliseconds, and must not come too early
            raise AllowanceError(
                f"this token may send {self._rate:g} requests a second; ask again in {wait_s:.2f} s", wait_s
            )
        self._left -= 1

    async def pace(self, requests: AsyncIterator[_Request]) -> AsyncIterator[_Request]:
        """Pass on the requests of a stream as fast as the bucket fills; flow control slows its sender down.

        If the client goes away while a request waits, its token goes back into the bucket.
        """
        async for request in requests:
            wait_s = self._wait_s()
            self._left -= 1
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                self._left += 1
                raise
            yield request

    def _wait_s(self) -> float:
        """Return after how many seconds the bucket has a token for this request, after those promised; 0 for now."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, (1 - self._left) / self._rate)
