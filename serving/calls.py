"""The call that is being answered: who sent it, and what is recorded about it for the log."""

import logging
import random
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from serving.allowance import Allowance
from serving.statistics import Stages

if TYPE_CHECKING:
    from serving.spans import Span  # in an extra

_log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
# Without spaces, so that an id cannot pass for other words of a log line.
_REQUEST_ID = re.compile(r"[!-~]{1,64}")
_ID_BITS = 128
_QUIET = ("grpc.health.", "grpc.reflection.")
# A client's own clock ends its call a moment before the server's would.
_CLOCKS_APART_S = 0.05


@dataclass(eq=False)
class Call:
    """One call, from its arrival to its end.

    Attributes:
        method: The method's full name.
        request_id: The client's name for the call.
        peer: Where it came from, as gRPC has it.
        client: Whose token it brought; empty where there are no tokens.
        allowance: What is left to its client; None where there are no tokens.
        model: The requested model, as NAME/VERSION; empty if none was reached.
        size: (height, width) of its last image; None if none was decoded.
        images: Images that were answered.
        stages_ms: Milliseconds by stage, summed over those images.
    """

    method: str
    request_id: str
    peer: str = ""
    client: str = ""
    allowance: Allowance | None = None
    model: str = ""
    size: tuple[int, int] | None = None
    images: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)

    def reached(self, model: str, version: str) -> None:
        """Record which model an image has reached."""
        self.model = f"{model}/{version}"
        if (span := current_span.get()) is not None:
            span.reached(model, version)

    def decoded(self, height: int, width: int) -> None:
        """Record the size of a decoded image."""
        self.size = height, width
        if (span := current_span.get()) is not None:
            span.decoded(height, width)

    def answered(self, stages: Stages) -> None:
        """Record the durations of an answered image's stages."""
        if (span := current_span.get()) is not None:
            span.answered(stages)
        self.images += 1
        for name, seconds in (
            ("decode_ms", stages.decode_s),
            ("queue_ms", stages.queue_s),
            ("infer_ms", stages.infer_s),
            ("encode_ms", stages.encode_s),
        ):
            self.stages_ms[name] = self.stages_ms.get(name, 0.0) + seconds * 1000

    def leave_behind(self, work: Future[Any]) -> None:
        """Count work that continues in a thread though nobody waits for it any more against the client's allowance."""
        if self.allowance is not None:
            self.allowance.outlast(work)

    def log(self, code: grpc.StatusCode, seconds: float, error: str = "") -> None:
        """Write the call's log line: at INFO, or at DEBUG for methods that probes call.

        Args:
            code: The status code that the call ended with.
            seconds: How long the call took.
            error: The error message that its client got, if any.
        """
        level = logging.DEBUG if asked_by_probes(self.method) else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields: dict[str, str | int | float] = {"method": self.method, "code": code.name}
        if self.model:
            fields["model"] = self.model
        if self.size:
            fields |= {"height": self.size[0], "width": self.size[1]}
        if self.images:
            fields["images"] = self.images
        fields |= {name: round(value, 3) for name, value in (*self.stages_ms.items(), ("total_ms", seconds * 1000))}
        fields |= {name: value for name, value in (("client", self.client), ("peer", self.peer)) if value}
        if error:
            fields["error"] = error
        _log.log(level, "call ended", extra={"fields": fields})


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""The call that the running task or thread works for; None if it works for none, or for several."""

current_span: ContextVar["Span | None"] = ContextVar("current_span", default=None)
"""The trace span of that call, or of one of its images; None if calls are not traced."""


@contextmanager
def image_span(image_id: str = "") -> Iterator["Span | None"]:
    """Give one of several images of the current call a span of its own, if the call is traced.

    Args:
        image_id: The id that its client gave it; empty for none.
    """
    outer = current_span.get()
    if outer is None:
        yield None
        return
    inner = outer.begin_image(image_id)
    token = current_span.set(inner)
    try:
        yield inner
    finally:
        current_span.reset(token)
        inner.end()


def asked_by_probes(method: str) -> bool:
    """Tell whether a method, given by its full name, is one that probes call every few seconds."""
    return method.startswith(_QUIET)


def read_request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return a call's id: the client's where it gave one of 1 to 64 printable ASCII characters, else a fresh one."""
    given = next((value for key, value in metadata if key == REQUEST_ID_KEY), None)
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    # Not from os.urandom: the system call releases the GIL, which costs 4 % of the smallest requests.
    return f"{random.getrandbits(_ID_BITS):032x}"


def ran_out(remaining_s: float | None) -> bool:
    """Tell whether a cancelled call ran out of time, given the seconds left to its deadline; None for no deadline."""
    return remaining_s is not None and remaining_s <= _CLOCKS_APART_S
