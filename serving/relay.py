"""Work in several stages on different threads, for which the event loop is woken only once, when all are done."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")


class Relay(Future[_Answer]):
    """The future of two stages, the second begun by the thread that ended the first; a stage may be a relay itself.

    When it is cancelled, a waiting stage leaves its queue and no other begins. It is done only when a running stage,
    which holds the data that it works on, has ended.

    Args:
        first: The first stage, which has begun.
        begin: Begins the second stage with the result of the first.
    """

    def __init__(self, first: Future[Any], begin: Callable[[Any], Future[_Answer]]) -> None:
        super().__init__()
        self._begin: Callable[[Any], Future[_Answer]] | None = begin
        self._given_up = False
        self._stage: Future[Any] | None = first
        first.add_done_callback(self._go_on)

    def cancel(self) -> bool:
        """Begin no further stage; tell whether the relay is cancelled already."""
        self._given_up = True
        if (stage := self._stage) is not None:
            stage.cancel()
        return self.cancelled()

    def _go_on(self, ended: Future[Any]) -> None:
        """Begin the second stage, or finish."""
        self._stage = None
        begin, self._begin = self._begin, None  # it holds the data of its stage
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
    """Begin a stage; if it cannot begin, return it as failed."""
    try:
        return begin(ended.result())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the relay
        failed: Future[Any] = Future()
        # The traceback refers to frames that hold the relay: a cycle, which would keep the data of the stages until the
        # garbage collector runs.
        failed.set_exception(error.with_traceback(None))
        return failed
