"""Streams of images: a few are answered at a time, and their answers leave in their order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError

from serving.drain import CallCounter
from serving.errors import StoppingError
from serving.statuses import refuse

if TYPE_CHECKING:
    from serving.unary import Context

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

_REQUESTS_AHEAD = 8


async def answer_in_order(
    requests: AsyncIterator[_Request],
    answer: Callable[[_Request], Awaitable[_Answer]],
    context: "Context",
    calls: CallCounter,
    what: str,
) -> None:
    """Answer the requests of a stream until its sender ends it; when the server stops, those that were read.

    Only a few are read ahead, so that a sender that is faster than the model is held back by flow control.

    Args:
        requests: What comes.
        answer: Answers one; it must not raise.
        context: Takes the answers.
        calls: Knows when the server stops, and waits for the stream.
        what: The method, for the log.
    """
    answers: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue(_REQUESTS_AHEAD - 1)
    end: Exception | None = None
    with calls.counting():
        async with asyncio.TaskGroup() as group:

            async def work(request: _Request) -> _Answer:
                return await answer(request)

            async def read() -> None:
                nonlocal end
                try:
                    async for request in _until_stopped(requests, calls.stopping):
                        await answers.put(group.create_task(work(request)))
                except DecodeError as error:
                    end = error
                await answers.put(None)

            group.create_task(read())
            while (task := await answers.get()) is not None:
                await context.write(await task)
    if calls.stopping.is_set():
        end = StoppingError("the server is stopping; go on with another")
    if end is not None:
        refusal = refuse(end, what)
        await context.abort(refusal.code, refusal.message)


async def _until_stopped(requests: AsyncIterator[_Request], stopping: asyncio.Event) -> AsyncIterator[_Request]:
    stopped = asyncio.create_task(stopping.wait())
    coming: asyncio.Future[_Request | None] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(requests, None))
            await asyncio.wait({coming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            request = coming.result() if coming.done() else None
            if request is None:
                return
            yield request
    finally:
        stopped.cancel()
        if coming is not None:
            coming.cancel()
