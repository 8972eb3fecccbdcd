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
    """Requests a second, by a token bucket that holds those of one second, and calls at a time; for one event loop.

    Args:
        rate: Requests a second; None for any number.
        concurrent: Calls at a time, of which a stream is one, as is each piece of work that one leaves behind; and
            beside them as many answers that have not left, which a client does not read. None for any number.

    Attributes:
        calls: How many are under way.
        unread: How many answers are made and have not left.
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
        """Count a call as under way while it is.

        Raises:
            AllowanceError: There are as many as there may be.
        """
        if self._concurrent is not None and self.calls >= self._concurrent:
            raise AllowanceError(
                f"{self.calls} calls with this token are under way, as many as it may have; ask again later",
                _BUSY_RETRY_S,
            )
        # An answer that its client has read may be told of after the client's next call.
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
        """Count work that goes on in a thread, though its call has ended, as a call until it is done."""
        self._count(1)
        work.add_done_callback(lambda _: self._count(-1))

    def _count(self, more: int) -> None:
        with self._counting:
            self.calls += more

    def take(self) -> None:
        """Take one request from the bucket.

        Raises:
            AllowanceError: It is empty; the error tells when it will not be.
        """
        if wait_s := self._wait_s():
            wait_s = math.ceil(wait_s * 1000) / 1000  # clients are told milliseconds, and must not come too early
            raise AllowanceError(
                f"this token may send {self._rate:g} requests a second; ask again in {wait_s:.2f} s", wait_s
            )
        self._left -= 1

    async def pace(self, requests: AsyncIterator[_Request]) -> AsyncIterator[_Request]:
        """Pass on the requests of a stream as fast as the bucket fills; flow control holds its sender back.

        A request whose client goes away while it waits takes nothing from the bucket.
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
        """Return in how many seconds there is a request to take, those promised before it counted; 0 for now."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._seen) * self._rate)
        self._seen = now
        return max(0.0, (1 - self._left) / self._rate)
