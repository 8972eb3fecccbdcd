"""Work that goes on from thread to thread, for which the event loop is woken once, when all of it is done."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


class Relay(Future[_Answer]):
    """The last of some stages, each of which is begun in the thread that ended the one before.

    When it is cancelled, a stage that waits leaves its queue, and no other begins; it is done when the stage under way,
    which holds what it works on, has ended.

    Args:
        first: The stage that has begun.
        others: Each begins the next one with what the one before has given.
    """

    def __init__(self, first: Future[Any], *others: Callable[[Any], Future[Any]]) -> None:
        super().__init__()
        self._others = list(reversed(others))
        self._given_up = False
        self._stage: Future[Any] | None = first
        first.add_done_callback(self._go_on)

    def cancel(self) -> bool:
        """Begin no other stage; tell whether it has ended at once."""
        self._given_up = True
        if (stage := self._stage) is not None:
            stage.cancel()
        return self.cancelled()

    def _go_on(self, ended: Future[Any]) -> None:
        """Begin the next stage, or end."""
        self._stage = None
        if self._given_up or ended.cancelled():
            self._others.clear()  # they hold what they would work on
            super().cancel()
        elif (error := ended.exception()) is not None:
            self._others.clear()
            self.set_exception(error)
        elif self._others:
            stage = _begin(self._others.pop(), ended)
            self._stage = stage
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
