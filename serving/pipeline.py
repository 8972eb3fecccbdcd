"""The path of every image through the server, whatever the protocol: let in, decoded, run, written."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fcnseg.cores import usable_cores
from fcnseg.images import ImageLimits
from fcnseg.types import answer_bytes
from serving.admission import Ticket
from serving.batcher import Executed
from serving.calls import current_call, ran_out
from serving.errors import InvalidFieldError, OverloadedError, TooLateError
from serving.image_sources import COPIES, Source
from serving.patience import Patience
from serving.relay import Relay
from serving.served_model import ServedModel
from serving.statistics import Stages
from serving.streams import Turn

_Answer = TypeVar("_Answer")

_LONGEST_PAUSE_S = 0.1
_INSTANT_BYTES = 1 << 20  # written in less than a millisecond


@dataclass(frozen=True)
class Demands:
    """What an answer takes beside a class map.

    Attributes:
        confidence: Whether the confidence map is wanted.
        scores: Whether the heatmap is looked at.
        heatmaps: Of how many classes heatmaps are written.
        scratch: Called with the image's height and width and the cells of its heatmap; returns how many bytes writing
            takes for a while beside the answer.
        extras: What is written beside the class map, by names: answers with the same take about as long.
        instant: Whether writing takes no time worth a thread for an image that is not large.
        require_size: Called with the image's height and width before it is decoded; raises InvalidFieldError where the
            answer could not be written.
    """

    confidence: bool = False
    scores: bool = False
    heatmaps: int = 0
    scratch: Callable[[int, int, int], int] = lambda _height, _width, _cells: 0
    extras: frozenset[str] = frozenset()
    instant: bool = False
    require_size: Callable[[int, int], None] = lambda _height, _width: None


class Pipeline:
    """Takes images from their bytes to their answers.

    Decoding and writing are done in threads, as many at a time as there are cores, so that the event loop never waits
    for them; running in the model's own.

    Args:
        limits: Images beyond these are refused.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._codecs = ThreadPoolExecutor(max_workers=usable_cores(), thread_name_prefix="codec")

    async def answer(
        self,
        model: ServedModel,
        source: Source,
        write: Callable[[NDArray[np.uint8], Executed, Patience], _Answer],
        held: ExitStack,
        *,
        demands: Demands = Demands(),
        deadline: float = math.inf,
        turn: Turn | None = None,
        ticket: Ticket | None = None,
    ) -> tuple[_Answer, Stages]:
        """Answer one image; when the awaiting task is cancelled, what has not begun is not done.

        Args:
            model: The model.
            source: The image.
            write: Makes the answer of the image, (H, W, 3) uint8 RGB, and what the run gave; where that takes long, it
                asks whether there is still patience for it.
            held: Takes what the image and its answer hold; to be closed when the answer has left.
            demands: What the answer takes.
            deadline: When the answer is of no use any more, on the monotonic clock.
            turn: Its turn in a stream, where it is one's: it waits where there is no room now, as long as the deadline
                allows.
            ticket: Its ticket, where it is let in already (`enter_together`).

        Returns:
            The answer, and what its stages took.

        Raises:
            InvalidFieldError: The image cannot be read or is beyond a limit.
            OverloadedError: There is no room for it, or no time.
            TooLateError: The deadline passed before its turn came, or while its answer was written.
            StoppingError: The model is being closed.
        """
        began = time.monotonic()
        if (call := current_call.get()) is not None:
            call.reached(model.name, model.version)
        try:
            answer, stages = await _when_there_is_room(
                lambda: self._attempt(model, source, write, held, demands, deadline, turn, ticket),
                deadline,
                turn,
            )
        except BaseException as error:
            _count_failure(model, error, began, deadline)
            raise
        model.statistics.answered(stages)
        if call is not None:
            call.answered(stages)
        return answer, stages

    async def _attempt(
        self,
        model: ServedModel,
        source: Source,
        write: Callable[[NDArray[np.uint8], Executed, Patience], _Answer],
        held: ExitStack,
        demands: Demands,
        deadline: float,
        turn: Turn | None,
        given: Ticket | None,
    ) -> tuple[_Answer, Stages]:
        """Answer one image if there is room for it; the event loop is woken when its stages are done, not between."""
        arrived = time.monotonic()
        ticket = given or model.admission.enter()
        paid = given is not None
        patience = Patience(deadline)
        context = copy_context()  # of the current call, for one stage after another
        read = partial(self._read, model, source, ticket, demands, deadline, paid)
        passage = _Passage(model, ticket, demands, deadline, turn)

        def write_in_thread(executed: Executed) -> Future[_Answer]:
            return self._submit(context, write, passage.image, passage.ran(executed), patience)

        try:
            # What is to come is referred to by the ticket alone: its failure refers to this frame.
            if source.instant and (model.device == "cpu" or source.byte_count <= COPIES * _INSTANT_BYTES):
                passage.take(read())
                ticket.work = passage.run()
            else:
                ticket.work = Relay(self._submit(context, lambda: passage.take(read())), passage.run)
            if not demands.instant:
                ticket.work = Relay(ticket.work, write_in_thread)
                answer: _Answer = await asyncio.wrap_future(ticket.work)
            else:
                executed: Executed = await asyncio.wrap_future(ticket.work)
                if _is_small(executed):
                    answer = write(passage.image, passage.ran(executed), patience)
                else:
                    ticket.work = write_in_thread(executed)
                    answer = await asyncio.wrap_future(ticket.work)
            ticket.wrote()
        except OverloadedError:
            if not paid:
                ticket.close()  # at once: an image of a stream tries again, and is not to stand in its own way
            raise
        finally:
            _let_go(ticket, None if paid else held, patience)
        return answer, passage.stages(arrived, time.monotonic())

    async def enter_together(
        self,
        model: ServedModel,
        sources: Sequence[Source],
        held: ExitStack,
        *,
        demands: Demands = Demands(),
        deadline: float = math.inf,
        turn: Turn | None = None,
    ) -> list[Ticket]:
        """Let images that are asked for together in, with their memory: all of them or none.

        Args:
            model: The model.
            sources: The images.
            held: Takes what they hold, as for `answer`; what is done for one when it is closed keeps its part.
            demands: What each answer takes.
            deadline: When the answer is of no use any more.
            turn: The request's turn in a stream.

        Returns:
            Their tickets.

        Raises:
            InvalidFieldError: They could never be held together, or one is beyond a limit.
            OverloadedError: There is no room for them now.
        """
        began = time.monotonic()
        if (call := current_call.get()) is not None:
            call.reached(model.name, model.version)

        async def enter() -> list[Ticket]:
            tickets = model.admission.enter_together(byte_counts)
            for ticket in tickets:
                held.callback(ticket.close_when_done)
            return tickets

        try:
            byte_counts = await self.in_thread(self._bytes_of, model, sources, demands)
            return await _when_there_is_room(enter, deadline, turn)
        except BaseException as error:
            for _ in sources:
                _count_failure(model, error, began, deadline)
            raise

    def _bytes_of(self, model: ServedModel, sources: Sequence[Source], demands: Demands) -> list[int]:
        """Return how many bytes are held for each of images that are asked for together.

        Raises:
            InvalidFieldError: There will never be as many, or an image is beyond a limit.
        """
        byte_counts = [source.byte_count + held_bytes(model, *source.open(self.limits), demands) for source in sources]
        if (needed := sum(byte_counts)) > (total := model.admission.memory.total):
            raise InvalidFieldError(
                sources[0].field,
                f"{len(sources)} images need about {needed} bytes to be held together by model {model.name!r}, more"
                f" than the limit of {total}; send fewer at a time",
            )
        return byte_counts

    async def in_thread(self, work: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """Do work in one of the threads for decoding and writing."""
        submitted = self._submit(copy_context(), work, *arguments)
        try:
            return await asyncio.wrap_future(submitted)
        finally:
            _leave_behind(submitted)
            del submitted  # its failure refers to this frame

    def close(self) -> None:
        """Drop what waits for a thread."""
        self._codecs.shutdown(wait=False, cancel_futures=True)

    def _submit(self, context: Context, work: Callable[..., _Answer], *arguments: Any) -> Future[_Answer]:
        """Let a thread do work in a context in which no other does meanwhile."""
        todo = [partial(work, *arguments)]

        def do() -> _Answer:
            return todo.pop()()

        submitted = self._codecs.submit(context.run, do)
        # The pool keeps cancelled work until a thread comes to it; what it was to work on is not kept with it.
        submitted.add_done_callback(lambda _: todo.clear())
        return submitted

    def _read(
        self,
        model: ServedModel,
        source: Source,
        ticket: Ticket,
        demands: Demands,
        deadline: float,
        paid: bool,  # noqa: FBT001 - as for `answer`
    ) -> NDArray[np.uint8]:
        height, width = source.open(self.limits)
        demands.require_size(height, width)
        needed = source.byte_count + held_bytes(model, height, width, demands)
        # Its orientation may turn the image, which a net may pad otherwise then.
        run_bytes = max(model.batcher.run_bytes(height, width), model.batcher.run_bytes(width, height))
        for kind, count, most in (
            ("to be held", needed, model.admission.memory.total),
            ("to be computed", run_bytes, model.batcher.memory.total),
        ):
            if count > most:
                raise InvalidFieldError(
                    source.field,
                    f"an image of {width} x {height} pixels needs about {count} bytes {kind} by model {model.name!r},"
                    f" more than the limit of {most}; scale it down or cut it into tiles",
                )
        patience_s = None if deadline == math.inf else deadline - time.monotonic()
        ticket.reserve(height, width, 0 if paid else needed, patience_s, demands.extras)
        return source.decode()


class _Passage:
    """One image on its way from thread to thread.

    Args:
        model: The model.
        ticket: The image's.
        demands: What the answer takes.
        deadline: When the answer is of no use any more, on the monotonic clock.
        turn: Its turn in a stream, where it is one's.

    Attributes:
        image: (H, W, 3) uint8 RGB, once it was taken.
    """

    image: NDArray[np.uint8]
    _prepared: NDArray[np.uint8]
    _decoded: float
    _ran: float
    _executed: Executed

    def __init__(
        self,
        model: ServedModel,
        ticket: Ticket,
        demands: Demands,
        deadline: float,
        turn: Turn | None,
    ) -> None:
        self._model, self._ticket, self._turn = model, ticket, turn
        self._demands, self._deadline = demands, deadline

    def take(self, image: NDArray[np.uint8]) -> None:
        """Take in the image, which was decoded, and prepare it for its run."""
        height, width, _ = image.shape
        self._prepared = self._model.batcher.prepare(image)
        self.image = self._prepared[:height, :width]  # so that what it was prepared from is held no longer
        self._decoded = time.monotonic()
        if self._turn is not None:
            self._turn.enter()
        if (call := current_call.get()) is not None:
            call.decoded(height, width)

    def run(self, _taken: None = None) -> Future[Executed]:
        """Let the image wait for its run."""
        height, width, _ = self.image.shape
        return self._model.batcher.submit(
            self._prepared,
            (height, width),
            confidence=self._demands.confidence,
            heatmap=self._demands.scores,
            deadline=self._deadline,
        )

    def ran(self, executed: Executed) -> Executed:
        """Take in what the run gave, and return it."""
        self._ticket.ran()
        self._ran, self._executed = time.monotonic(), executed
        return executed

    def stages(self, arrived: float, written: float) -> Stages:
        """Return what the stages took, all of which are done.

        Args:
            arrived: When the image came, on the monotonic clock.
            written: When its answer was written.
        """
        executed = self._executed
        decode_s, encode_s = self._decoded - arrived, written - self._ran
        return Stages(arrived, written, decode_s, executed.queue_s, executed.infer_s, encode_s, executed.batch_size)


def _count_failure(model: ServedModel, error: BaseException, began: float, deadline: float) -> None:
    """Count an image that was not answered.

    Args:
        model: The model that it was for.
        error: Why.
        began: When it came, on the monotonic clock.
        deadline: When its answer was of no use any more, on the same.
    """
    ended = time.monotonic()
    late = isinstance(error, asyncio.CancelledError) and ran_out(deadline - ended)
    model.statistics.failed(ended - began, TooLateError("the deadline passed on the way") if late else error)


async def _when_there_is_room(attempt: Callable[[], Awaitable[_Answer]], deadline: float, turn: Turn | None) -> _Answer:
    """Attempt what may find no room; for a turn in a stream again and again, as long as the deadline allows."""
    while True:
        try:
            return await attempt()
        except OverloadedError as error:
            pause = min(error.retry_after_s, _LONGEST_PAUSE_S)
            if turn is None or time.monotonic() + pause >= deadline:
                raise
        await asyncio.sleep(pause)


def _let_go(ticket: Ticket, held: ExitStack | None, patience: Patience) -> None:
    """See to it that a ticket is closed: when the answer has left, and not before its work is done.

    A caller that has gone away leaves its work behind, which holds the image until it is done. Where `held` is None,
    whoever gave the ticket closes it.
    """
    left_behind = ticket.work is not None and _leave_behind(ticket.work)
    if left_behind:
        patience.end()
    if held is not None and ticket.work is not None and not left_behind:
        held.callback(ticket.close)
    elif held is not None:
        ticket.close_when_done()


def _leave_behind(work: Future[Any]) -> bool:
    """Tell whether work goes on though nobody waits for it any more; it is counted as its client's until it is done."""
    if work.done():
        return False
    if (call := current_call.get()) is not None:
        call.leave_behind(work)
    return True


def _is_small(executed: Executed) -> bool:
    segmentation = executed.segmentation
    return segmentation.class_map.nbytes + segmentation.heatmap.nbytes <= _INSTANT_BYTES


def held_bytes(model: ServedModel, height: int, width: int, demands: Demands) -> int:
    """Return what an image holds beside its message from its decoding to its answer, in bytes."""
    label_map = model.info.label_map
    cells = model.info.geometry.cells(height, width)
    # On a GPU the image and what is computed of it are padded (`Batcher.prepare`).
    pixels = height * width if model.device == "cpu" else model.batcher.padded_pixels(height, width)
    # A heatmap that is answered is held in the message too, and as that is sent.
    byte_count = answer_bytes(label_map, pixels, cells * (len(label_map) + 2 * demands.heatmaps))
    return byte_count + demands.scratch(height, width, cells)
