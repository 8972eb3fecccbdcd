"""The path of every image through the server, for both protocols: admission, decoding, the run, writing the answer."""

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
    """What an answer needs besides the class map.

    Attributes:
        confidence: Whether the confidence map is wanted.
        scores: Whether the heatmap is read.
        heatmaps: Number of classes whose heatmaps are written.
        scratch: Called with the image's height and width and the number of its heatmap cells; returns the bytes of
            temporary memory that writing the answer takes.
        extras: Names of what is written besides the class map; answers with the same extras take about equally long.
        instant: Whether writing the answer of a small image is too quick to be worth a thread.
        require_size: Called with the image's height and width before it is decoded; raises InvalidFieldError if the
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

    Decoding and writing run in a pool of as many threads as there are cores, so that the event loop never waits for
    them; the model runs in its own threads.

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
        """Answer one image; if the awaiting task is cancelled, stages that have not begun are skipped.

        Args:
            model: The model.
            source: The image.
            write: Makes the answer from the image, (H, W, 3) uint8 RGB, and the result of the run; if that takes long,
                it checks the `Patience` that it is given.
            held: Releases the memory of the image and its answer when it is closed, after the answer has been sent.
            demands: What the answer needs.
            deadline: Time on the monotonic clock after which the answer is useless.
            turn: Its turn, if it is an image of a stream: it then waits for room until the deadline, instead of being
                refused.
            ticket: Its ticket, if it was admitted before (`enter_together`).

        Returns:
            The answer, and the durations of its stages.

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
        """Answer one image if there is room for it; the event loop is woken once, when all stages are done."""
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
            # Only the ticket refers to the pending work: a local variable would form a cycle with its exception.
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
                ticket.close()  # now: an image of a stream tries again, and must not compete with its own old ticket
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
        """Admit the images of one request together, with their memory: all of them or none.

        Args:
            model: The model.
            sources: The images.
            held: Releases their memory when it is closed; an image that is still worked on keeps its part until then.
            demands: What each answer needs.
            deadline: Time on the monotonic clock after which the answer is useless.
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
        """Return how many bytes each image of a request holds.

        Raises:
            InvalidFieldError: Together they need more than there is at all, or an image is beyond a limit.
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
        """Run a function in one of the threads for decoding and writing."""
        submitted = self._submit(copy_context(), work, *arguments)
        try:
            return await asyncio.wrap_future(submitted)
        finally:
            _leave_behind(submitted)
            del submitted  # its exception refers to this frame

    def close(self) -> None:
        """Drop work that still waits for a thread."""
        self._codecs.shutdown(wait=False, cancel_futures=True)

    def _submit(self, context: Context, work: Callable[..., _Answer], *arguments: Any) -> Future[_Answer]:
        """Submit work to the thread pool, in a context that no other thread is in at the same time."""
        todo = [partial(work, *arguments)]

        def do() -> _Answer:
            return todo.pop()()

        submitted = self._codecs.submit(context.run, do)
        # The pool keeps cancelled work until a thread takes it from the queue; its arguments are freed now.
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
        # EXIF orientation may turn the image by 90 degrees, and the net may then pad it differently.
        run_bytes = max(model.batcher.run_bytes(height, width), model.batcher.run_bytes(width, height))
        for kind, count, most in (
            ("while it is held", needed, model.admission.memory.total),
            ("while it is run", run_bytes, model.batcher.memory.total),
        ):
            if count > most:
                raise InvalidFieldError(
                    source.field,
                    f"an image of {width} x {height} pixels needs about {count} bytes {kind} for model {model.name!r},"
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
        demands: What the answer needs.
        deadline: Time on the monotonic clock after which the answer is useless.
        turn: Its turn, if it is an image of a stream.

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
        """Accept the decoded image, and prepare it for its run."""
        height, width, _ = image.shape
        self._prepared = self._model.batcher.prepare(image)
        self.image = self._prepared[:height, :width]  # a view: the array it was prepared from is freed
        self._decoded = time.monotonic()
        if self._turn is not None:
            self._turn.enter()
        if (call := current_call.get()) is not None:
            call.decoded(height, width)

    def run(self, _taken: None = None) -> Future[Executed]:
        """Put the image into the model's queue."""
        height, width, _ = self.image.shape
        return self._model.batcher.submit(
            self._prepared,
            (height, width),
            confidence=self._demands.confidence,
            heatmap=self._demands.scores,
            deadline=self._deadline,
        )

    def ran(self, executed: Executed) -> Executed:
        """Record the result of the run, and return it."""
        self._ticket.ran()
        self._ran, self._executed = time.monotonic(), executed
        return executed

    def stages(self, arrived: float, written: float) -> Stages:
        """Return the durations of the stages, all of which are done.

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
        deadline: Time after which its answer was useless, on the same clock.
    """
    ended = time.monotonic()
    late = isinstance(error, asyncio.CancelledError) and ran_out(deadline - ended)
    model.statistics.failed(ended - began, TooLateError("the deadline passed on the way") if late else error)


async def _when_there_is_room(attempt: Callable[[], Awaitable[_Answer]], deadline: float, turn: Turn | None) -> _Answer:
    """Make an attempt that may be refused for lack of room; for an image of a stream, repeat it until the deadline."""
    while True:
        try:
            return await attempt()
        except OverloadedError as error:
            pause = min(error.retry_after_s, _LONGEST_PAUSE_S)
            if turn is None or time.monotonic() + pause >= deadline:
                raise
        await asyncio.sleep(pause)


def _let_go(ticket: Ticket, held: ExitStack | None, patience: Patience) -> None:
    """Arrange for a ticket to be closed when the answer has been sent, and not before its work is done.

    If the caller has gone away, work that has begun continues, and holds the image until it is done. If `held` is None,
    the owner of the ticket closes it.
    """
    left_behind = ticket.work is not None and _leave_behind(ticket.work)
    if left_behind:
        patience.end()
    if held is not None and ticket.work is not None and not left_behind:
        held.callback(ticket.close)
    elif held is not None:
        ticket.close_when_done()


def _leave_behind(work: Future[Any]) -> bool:
    """Tell whether work continues though nobody waits for it; it counts as a call of its client until it is done."""
    if work.done():
        return False
    if (call := current_call.get()) is not None:
        call.leave_behind(work)
    return True


def _is_small(executed: Executed) -> bool:
    segmentation = executed.segmentation
    return segmentation.class_map.nbytes + segmentation.heatmap.nbytes <= _INSTANT_BYTES


def held_bytes(model: ServedModel, height: int, width: int, demands: Demands) -> int:
    """Return the bytes that an image holds besides its message, from its decoding to its answer."""
    label_map = model.info.label_map
    cells = model.info.geometry.cells(height, width)
    # On a GPU the image and what is computed of it are padded (`Batcher.prepare`).
    pixels = height * width if model.device == "cpu" else model.batcher.padded_pixels(height, width)
    # A heatmap in the answer is held twice more: in the response message, and in its serialized bytes.
    byte_count = answer_bytes(label_map, pixels, cells * (len(label_map) + 2 * demands.heatmaps))
    return byte_count + demands.scratch(height, width, cells)
