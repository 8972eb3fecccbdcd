"""The call that is being answered: who asks, and what is learnt of it on the way, for the log."""

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
        model: The model that was asked, as NAME/VERSION; empty where none was.
        size: (height, width) of its last image; None where none was decoded.
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
        """Take in which model an image has reached."""
        self.model = f"{model}/{version}"
        if (span := current_span.get()) is not None:
            span.reached(model, version)

    def decoded(self, height: int, width: int) -> None:
        """Take in an image's size."""
        self.size = height, width
        if (span := current_span.get()) is not None:
            span.decoded(height, width)

    def answered(self, stages: Stages) -> None:
        """Take in what an image's stages took."""
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
        """Take in work that nobody waits for any more, though it goes on in a thread."""
        if self.allowance is not None:
            self.allowance.outlast(work)

    def log(self, code: grpc.StatusCode, seconds: float, error: str = "") -> None:
        """Write the call's line: at INFO, and at DEBUG where probes ask.

        Args:
            code: The status code that the call ended with.
            seconds: How long the call took.
            error: What its client was told, where it was told why it is not answered.
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
"""The call that the running task, or thread, works for; None where it works for none, or for many."""

current_span: ContextVar["Span | None"] = ContextVar("current_span", default=None)
"""What is traced of that call, or of one of its images; None where calls are not traced."""


@contextmanager
def image_span(image_id: str = "") -> Iterator["Span | None"]:
    """Let one of several images of the current call have a span of its own, where the call is traced.

    Args:
        image_id: What its client calls it; empty for nothing.
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
    """Tell whether a method, by its full name, is one that probes call every few seconds."""
    return method.startswith(_QUIET)


def read_request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return a call's id: the client's where it gave one of 1 to 64 printable ASCII characters, else a fresh one."""
    given = next((value for key, value in metadata if key == REQUEST_ID_KEY), None)
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    # Not of the system's randomness: asking for it hands Python's lock to another thread, 4 % of the smallest requests.
    return f"{random.getrandbits(_ID_BITS):032x}"


def ran_out(remaining_s: float | None) -> bool:
    """Tell whether a call that was cancelled with so many seconds to its deadline, None for no deadline, was late."""
    return remaining_s is not None and remaining_s <= _CLOCKS_APART_S
