"""The part of a client that is not transport; `Client` and `AsyncClient` differ only in how they call and wait."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc

from fcnseg.access import Access
from fcnseg.errors import ImageError, MaskError, RequestError, ServerUnavailableError, UsageError
from fcnseg.hosts import is_loopback, read_hosts
from fcnseg.query import ImageSource, SegmentQuery, StreamSource
from fcnseg.readiness import Readiness
from fcnseg.remote import RemoteSegmentation, StreamItem
from fcnseg.statuses import FailedCall, Status, to_error
from fcnseg.trace_context import trace_metadata
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.wire import read_segmentation, require_sendable, write_request

MAX_MESSAGE_BYTES = 1 << 30
"""gRPC's own default of 4 MB is less than one raw photograph."""
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 3
MAX_RETRIES = 4
"""gRPC makes no more than 5 attempts, whatever is configured."""
DEFAULT_IN_FLIGHT = 8
PING_AFTER_MS = 10_000
"""Time without traffic after which a connection with a pending request is pinged. Our servers allow half of it; others,
such as Go's by default, may treat more than two such pings in 5 minutes as an attack."""
PING_TIMEOUT_MS = 20_000
"""How long the answer to a ping may take; after that, the connection's requests are sent again over another one."""
LONGEST_ID = 256
"""Most characters of the id of an image in a stream."""

_LONGEST_TIMEOUT_S = 86400.0
_LARGEST_MESSAGE_BYTES = (1 << 31) - 1
_SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]


@dataclass(frozen=True)
class Asked:
    """A pending request.

    Attributes:
        query: What is requested.
        image: The image's path, for messages; None if it is not a file.
        started: When the request began, by `time.perf_counter`.
    """

    query: SegmentQuery
    image: str | None
    started: float


@dataclass(frozen=True)
class AskedItem:
    """An image of a stream that was taken: it is pending, or could not be read.

    Attributes:
        id: The id given, or the image's position.
        asked: The pending request; None if the image could not be read.
        error: Why it could not be read.
    """

    id: str | int
    asked: Asked | None
    error: ImageError | None = None


@dataclass(frozen=True)
class Exchange:
    """Writes requests to one server, or to several identical ones, and reads their answers.

    Attributes:
        server: The server's address, as `hosts.read_hosts` takes it.
        timeout_s: How long a request may take, its retries included, in seconds.
        retries: How often a request is sent again if the server does not answer or is overloaded.
        max_message_bytes: The largest request or answer, in bytes; it also limits what an answer decodes to.
        access: Encryption and token of the client.
        connections: The number of connections that requests use in turn.

    Raises:
        UsageError: An attribute has an invalid value, or a token would be sent unencrypted.
    """

    server: str
    timeout_s: float
    retries: int
    max_message_bytes: int
    access: Access
    connections: int

    def __post_init__(self) -> None:
        hosts = read_hosts(self.server)
        _require_timeout(self.timeout_s)
        if not 0 <= self.retries <= MAX_RETRIES:
            raise UsageError(f"retries is {self.retries}; it must be from 0 to {MAX_RETRIES}")
        if not 0 < self.max_message_bytes <= _LARGEST_MESSAGE_BYTES:
            raise UsageError(
                f"largest message is {self.max_message_bytes} bytes; it must be from 1 to {_LARGEST_MESSAGE_BYTES}"
            )
        if self.connections < 1:
            raise UsageError(f"connections are {self.connections}; there must be at least 1")
        for host in hosts:
            self.access.require_private(host)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a request that is made now: the client's token, and the trace that it belongs to."""
        return (*self.access.metadata, *trace_metadata())

    @property
    def channel_options(self) -> list[tuple[str, int | str]]:
        """The channel arguments for gRPC."""
        options: list[tuple[str, int | str]] = [
            # Otherwise clients of one process would share a connection, and so one of several servers at the address.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),  # `ask` refuses too large a message without ending the stream
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # Find a server that has just started at once: gRPC's default backoff begins at a second and grows to two
            # minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # So is a server whose name has a new address: names are resolved again if none answers, by default at the
            # earliest 30 s after the last time.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            # A connection that died silently is dropped, instead of being used for a quarter of an hour. The timeout
            # allows for an upload over a slow line, behind which the ping waits.
            ("grpc.keepalive_time_ms", PING_AFTER_MS),
            ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # the one above alone closes nothing in gRPC 1.85
            ("grpc.http2.max_pings_without_data", 0),  # else an idle connection is pinged only twice
        ]
        # A proxy's loopback address is its own, and it must not see a token that must not leave this machine.
        if all(map(is_loopback, read_hosts(self.server))):
            options.append(("grpc.enable_http_proxy", 0))
        # Each request goes to the next reachable server among those that the address resolves to.
        config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
        if self.retries:
            config |= _retrying(self.retries + 1)
            # By default a request of more than 256 KiB is sent only once.
            options.append(("grpc.per_rpc_retry_buffer_size", self.max_message_bytes))
        options.append(("grpc.service_config", json.dumps(config)))
        return options

    def ask(self, image: ImageSource, query: SegmentQuery) -> tuple[Asked, pb.SegmentRequest]:
        """Return a request message, and the pending request for its answer.

        Raises:
            ImageError: The file cannot be read, the array is not an image, or the request exceeds the message limit.
            UsageError: A name is not valid Unicode.
        """
        started = time.perf_counter()
        try:
            request = write_request(image, query, self.max_message_bytes)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the request names {error.object!r}, which is not Unicode text; no server has it"
            ) from error
        require_sendable(request.ByteSize(), self.max_message_bytes)
        return Asked(query, str(image) if isinstance(image, (str, Path)) else None, started), request

    def read(self, asked: Asked, response: pb.SegmentResponse) -> RemoteSegmentation:
        """Return the answer to a request.

        Raises:
            RequestError: The answer is broken, or lacks what was requested.
        """
        if missing := _missing(asked.query, response):
            raise RequestError(
                f"the server at {self.server} answers without {missing}: it is of an older version; update it, or ask"
                " for the mask alone",
                "UNIMPLEMENTED",
            )
        try:
            return read_segmentation(response, asked.started, self.max_message_bytes)
        except MaskError as error:
            raise RequestError(f"server {self.server} sent a broken answer: {error}", "INTERNAL") from error

    def ask_item(
        self, position: int, source: StreamSource, query: SegmentQuery
    ) -> tuple[AskedItem, pb.SegmentStreamRequest | None]:
        """Return the request message for one image of a stream, and its item; no message if the image has an error.

        Args:
            position: How many images came before.
            source: The image, or its id and the image.
            query: What is requested.

        Raises:
            UsageError: The id is too long, or not valid Unicode.
        """
        item_id, image = source if isinstance(source, tuple) else (position, source)
        sent_id = str(item_id)
        if len(sent_id) > LONGEST_ID:
            raise UsageError(f"a stream's id has {len(sent_id)} characters; use at most {LONGEST_ID}")
        try:
            sent_id.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"a stream's id {sent_id!r} is not Unicode text, as a file's name may be; leave it out, and the image's"
                " position is its id"
            ) from error
        try:
            asked, request = self.ask(image, query)
        except ImageError as error:
            return AskedItem(item_id, None, error), None
        return AskedItem(item_id, asked), pb.SegmentStreamRequest(id=sent_id, request=request)

    def read_item(self, item: AskedItem, answer: pb.SegmentStreamResponse | None) -> StreamItem:
        """Return the result for one image of a stream.

        Args:
            item: The image.
            answer: Its answer; None if the image could not be read, or the server ended the stream.

        Raises:
            RequestError: There is no answer, or it belongs to another image.
        """
        if item.asked is None:
            return StreamItem(item.id, error=item.error)
        if answer is None:
            raise self._cut_short()
        if answer.id != str(item.id):
            raise RequestError(
                f"server {self.server} answered image {answer.id!r} of the stream in the place of {item.id!r}; install"
                " the server's version of fcnseg",
                "INTERNAL",
            )
        if answer.HasField("failure"):
            failure = answer.failure
            status = Status.of_failure(failure.code, failure.message, failure.field)
            return StreamItem(item.id, error=self.error(status, item.asked))
        try:
            return StreamItem(item.id, self.read(item.asked, answer.response))
        except RequestError as error:
            return StreamItem(item.id, error=error)

    def readiness(self, timeout_s: float) -> Readiness:
        """Return the state of waiting, from now on, for a server to get ready within some seconds.

        Raises:
            UsageError: The number of seconds is not valid.
        """
        _require_timeout(timeout_s)
        return Readiness(self.server, timeout_s)

    def failure(self, call: FailedCall, asked: Asked | None = None, timeout_s: float | None = None) -> RequestError:
        """Return the error for a failed call.

        Args:
            call: The call.
            asked: The pending request, if it was for an image.
            timeout_s: How long the answer was waited for, in seconds, if not the exchange's timeout.
        """
        return self.error(Status.of_call(call), asked, timeout_s)

    def error(self, status: Status, asked: Asked | None = None, timeout_s: float | None = None) -> RequestError:
        """Return the error for a status; as `failure`."""
        image = asked.image if asked is not None else None
        return to_error(status, self.server, self.timeout_s if timeout_s is None else timeout_s, image)

    def cancelled(self) -> RequestError:
        """Return the error of a call whose client was closed."""
        return self.error(Status(grpc.StatusCode.CANCELLED, "the client was closed"))

    def require_open(self, *, closed: bool) -> None:
        """Check that a client has not been closed.

        Raises:
            UsageError: The client has been closed.
        """
        if closed:
            raise UsageError(f"the client of server {self.server} has been closed; make another")

    def refuse_to_move(self) -> NoReturn:
        """Refuse to copy a client, or to send it to another process.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"the client of server {self.server} cannot be copied or sent to another process, since it is a connection;"
            " make another there"
        )

    def late(self) -> RequestError:
        """Return the error of a stream whose next answer does not come in time."""
        return self.error(Status(grpc.StatusCode.DEADLINE_EXCEEDED, ""))

    def require_end(self, answer: pb.SegmentStreamResponse | None, *, all_asked: bool) -> None:
        """Check that a stream ended properly.

        Args:
            answer: What followed the answer to the last image; None for the end.
            all_asked: Whether every image was sent.

        Raises:
            RequestError: There was another answer, or the server ended the stream before every image was sent.
        """
        if answer is not None:
            raise RequestError(
                f"server {self.server} answered {answer.id!r} after the last image of the stream; install the server's"
                " version of fcnseg",
                "INTERNAL",
            )
        if not all_asked:
            raise self._cut_short()

    def _cut_short(self) -> RequestError:
        return ServerUnavailableError(
            f"server {self.server} ended the stream before it had answered every image; send the rest again"
        )


def require_stream(images: object, in_flight: int) -> None:
    """Check the arguments of a stream.

    Raises:
        UsageError: `images` is a single path or one file's bytes, or `in_flight` is below 1.
    """
    if isinstance(images, (str, bytes, Path)):
        raise UsageError(f"the images of a stream are one {type(images).__name__}; give a list or another iterable")
    if in_flight < 1:
        raise UsageError(f"in_flight is {in_flight}; it must be at least 1")


def _require_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise UsageError(f"timeout is {timeout_s:g} s; it must be above 0 and at most {_LONGEST_TIMEOUT_S:g}")


def _retrying(attempts: int) -> dict[str, object]:
    """Return the part of a service config that makes gRPC retry requests.

    https://github.com/grpc/proposal/blob/master/A6-client-retries.md

    The pauses are 0.4, 1, 2.5 and 6.25 s, plus or minus a fifth, or what the server asks for by
    `grpc-retry-pushback-ms`. There is no retry throttling: it would count the failures of all of a client's threads,
    and give up on a server that restarts while they wait. CANCELLED is the status of a request that arrives while its
    server stops, or whose connection a balancer closes; a call that the client cancels is not retried. Streams are not
    retried, since an image that has been answered must not be sent again.
    """
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.4s",
        "backoffMultiplier": 2.5,
        "maxBackoff": "10s",
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
    }
    unary = [method.name for method in _SERVICE.methods if not method.client_streaming]
    names = [{"service": _SERVICE.full_name, "method": name} for name in unary]
    return {"methodConfig": [{"name": names, "retryPolicy": policy}]}


def _missing(query: SegmentQuery, response: pb.SegmentResponse) -> str:
    """Name what the answer lacks since the server is too old to know the request's field for it."""
    wanted = {
        "heatmaps and regions": bool(query.heatmaps or query.regions is not None)
        and not response.HasField("heatmap_grid"),
        "confidence": query.confidence and not response.HasField("confidence"),
        "overlay": bool(query.overlay) and not response.overlay,
        "a choice of classes": bool(query.classes) and not response.class_map.HasField("other_id"),
    }
    return " and ".join(name for name, is_missing in wanted.items() if is_missing)
