"""Work that goes on from thread to thread, for which the event loop is woken once, when all of it is done."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


class Relay(Future[_Answer]):
    """The second of two stages, which is begun in the thread that ended the first; either may be a relay itself.

    When it is cancelled, a stage that waits leaves its queue, and none begins; it is done when the stage under way,
    which holds what it works on, has ended.

    Args:
        first: The stage that has begun.
        begin: Begins the second with what the first has given.
    """

    def __init__(self, first: Future[Any], begin: Callable[[Any], Future[_Answer]]) -> None:
        super().__init__()
        self._begin: Callable[[Any], Future[_Answer]] | None = begin
        self._given_up = False
        self._stage: Future[Any] | None = first
        first.add_done_callback(self._go_on)

    def cancel(self) -> bool:
        """Begin no stage; tell whether it has ended at once."""
        self._given_up = True
        if (stage := self._stage) is not None:
            stage.cancel()
        return self.cancelled()

    def _go_on(self, ended: Future[Any]) -> None:
        """Begin the second stage, or end."""
        self._stage = None
        begin, self._begin = self._begin, None  # it holds what it would work on
        if self._given_up or ended.cancelled():
            super().cancel()
        elif (error := ended.exception()) is not None:
            self.set_exception(error)
        elif begin is not None:
            self._stage = stage = _begin(begin, ended)
            if self._given_up:
                stage.cancel()
            stage.add_done_callback(self._go_on)
        else:
            self.set_result(ended.result())


def _begin(begin: Callable[[Any], Future[Any]], ended: Future[Any]) -> Future[Any]:
    """Begin a stage; one that cannot begin has failed."""
    try:
        return begin(ended.result())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the relay
        failed: Future[Any] = Future()
        # By its traceback the failure would refer to frames, of which those that called hold the relay: a cycle, which
        # keeps what stages work on for long.
        failed.set_exception(error.with_traceback(None))
        return failed
