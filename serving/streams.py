"""Streams of images: a few are answered at a time, and the answers are sent in the order of the images."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from serving.calls import image_span
from serving.drain import CallCounter
from serving.errors import StoppingError, TooLateError
from serving.statuses import Refusal, abort, refuse

if TYPE_CHECKING:
    from serving.handlers import Context


class _Item(Protocol):
    """A request of a stream, with the id that its client gave it."""

    id: str


_Request = TypeVar("_Request", bound=_Item)
_Answer = TypeVar("_Answer")

_REQUESTS_AHEAD = 8
_LONGEST_WRITE_S = 60.0


class Turn:
    """The place of one request in its stream.

    Attributes:
        let_in: Set when there is room for its images; until then no further request is read from the stream.
        held: Memory of the request and its answer, released when the answer has been sent.
    """

    def __init__(self) -> None:
        self.let_in = asyncio.Event()
        self.held = ExitStack()
        self._loop = asyncio.get_running_loop()

    def enter(self) -> None:
        """Record, from any thread, that there is room."""
        self._loop.call_soon_threadsafe(self.let_in.set)


class _Reader(Generic[_Request]):
    """Reads a stream until its sender ends it or the server stops; it must be closed.

    Args:
        requests: The incoming requests.
        stopping: Set when the server stops.
    """

    def __init__(self, requests: AsyncIterator[_Request], stopping: asyncio.Event) -> None:
        self._requests = requests
        self._stopped = asyncio.create_task(stopping.wait())
        self._coming: asyncio.Future[_Request | None] | None = None

    @property
    def at_end(self) -> bool:
        """Whether the sender has ended the stream, even after the server stopped, and all its requests were read."""
        if (coming := self._coming) is None or not coming.done() or coming.cancelled():
            return False
        return coming.exception() is None and coming.result() is None

    async def next(self) -> _Request | None:
        """Return the next request; None if no more are read."""
        self._coming = asyncio.ensure_future(anext(self._requests, None))
        await asyncio.wait({self._coming, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
        return self._coming.result() if self._coming.done() else None

    def close(self) -> None:
        """Stop waiting for requests."""
        self._stopped.cancel()
        if self._coming is not None:
            self._coming.cancel()


async def answer_in_order(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request, Turn], Awaitable[_Answer]],
    write_failure: Callable[[_Request, Refusal], _Answer],
    context: "Context",
    calls: CallCounter,
    what: str,
) -> None:
    """Answer the requests of a stream until its sender ends it, or, when the server stops, those read so far.

    Only a few requests are read ahead, and at most one that waits for room, so that HTTP/2 flow control puts
    back-pressure on a sender that is faster than the model. A client that does not read its answers holds the stream
    back too: after a minute the stream is ended, and only its unread answer is still held.

    Args:
        requests: The incoming requests.
        answer: Answers one request.
        write_failure: Makes the response to a request that failed; the stream continues.
        context: Takes the answers.
        calls: Knows when the server stops, and makes it wait for the stream.
        what: The method, for the log.
    """
    answers: asyncio.Queue[tuple[asyncio.Task[_Answer], Turn] | None] = asyncio.Queue(_REQUESTS_AHEAD - 2)
    turns: set[Turn] = set()
    reader = _Reader(requests, calls.stopping)
    end: Exception | None = None
    gone = False
    with calls.counting(), ExitStack() as last:
        try:
            await context.send_initial_metadata(())  # by themselves, so that a status can follow an unread answer
            async with asyncio.TaskGroup() as group:

                async def work(request: _Request, turn: Turn) -> _Answer:
                    try:
                        return await _answer_item(request, answer(request, turn), write_failure, what)
                    finally:
                        turn.let_in.set()

                async def read() -> None:
                    nonlocal end
                    try:
                        while (request := await reader.next()) is not None:
                            turn = Turn()
                            turns.add(turn)
                            await answers.put((group.create_task(work(request, turn)), turn))
                            await turn.let_in.wait()
                    except DecodeError as error:
                        end = error
                    await answers.put(None)

                group.create_task(read())
                await _write_in_order(answers, turns, context, last)
        except* grpc.aio.BaseError:
            gone = True
        except* TimeoutError:
            end = TooLateError(f"the client read no answer for {_LONGEST_WRITE_S:g} s; read answers as they come")
        finally:
            _let_go(turns)
            reader.close()
        if gone:  # raised in `except*`, it would be wrapped by Python 3.11.3 and before
            raise asyncio.CancelledError
        if end is None and not reader.at_end:
            end = StoppingError("the server is stopping; continue with another server")
        if end is not None:
            await abort(context, end, what)


async def _write_in_order(
    answers: asyncio.Queue[tuple[asyncio.Task[_Answer], Turn] | None],
    turns: set[Turn],
    context: "Context",
    last: ExitStack,
) -> None:
    """Write answers in order, each as soon as it is ready.

    Args:
        answers: The tasks that make them, in their order, with their turns; None after the last.
        turns: The turns whose answers are not written yet.
        context: Takes the answers.
        last: Holds the memory of the answer that is being written, since gRPC keeps it even when the write times out.

    Raises:
        TimeoutError: The client did not read one in time.
    """
    while (coming := await answers.get()) is not None:
        task, turn = coming
        answered = await task
        turns.remove(turn)
        last.enter_context(turn.held)
        async with asyncio.timeout(_LONGEST_WRITE_S):
            await context.write(answered)
        last.close()


def _let_go(turns: Iterable[Turn]) -> None:
    for turn in turns:
        turn.held.close()


async def _answer_item(
    request: _Request, answer: Awaitable[_Answer], write_failure: Callable[[_Request, Refusal], _Answer], what: str
) -> _Answer:
    with image_span(request.id) as span:
        try:
            return await answer
        except Exception as error:  # noqa: BLE001 - one item's failure is told in its place
            refusal = refuse(error, f"an item of {what}")
            if span is not None:
                span.set_status(refusal.code, refusal.message)
            return write_failure(request, refusal)
