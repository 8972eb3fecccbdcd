"""Bytes of HTTP/2 by hand, for clients that no library would be."""

import socket
import struct
from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
MAX_CONCURRENT_STREAMS = 3
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def greeting(window: int = 65_535) -> bytes:
    """Return a client's first bytes, which let so many bytes of each answer come."""
    return PREFACE + frame(SETTINGS, payload=struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))


def begin(method: str = "fcnseg.v1.SegmentationService/Segment", **metadata: str) -> bytes:
    """Return the headers of a call, on stream 1; bytes that are no UTF-8 stand as lone surrogates."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{method}",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        **metadata,
    }
    # Literals without an index (RFC 7541, 6.2.2), each length in one byte.
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value
        for name, value in ((name, text.encode(errors="surrogateescape")) for name, text in headers.items())
    )
    return frame(HEADERS, _END_HEADERS, 1, block)


def send(request: Message) -> bytes:
    """Return the message of a call and its end, in one frame: at most 16 kB."""
    return send_all([request])


def send_all(requests: Iterable[Message]) -> bytes:
    """Return the messages of a call and its end, in one frame: at most 16 kB."""
    messages = [request.SerializeToString() for request in requests]
    return frame(DATA, _END_STREAM, 1, b"".join(struct.pack(">BI", 0, len(data)) + data for data in messages))


def send_part(claimed: int, sent: int) -> bytes:
    """Return the first bytes of a message that claims more."""
    return frame(DATA, 0, 1, struct.pack(">BI", 0, claimed) + bytes(sent))


def take(count: int) -> bytes:
    """Return what lets so many bytes more of the answer come."""
    size = count.to_bytes(4, "big")
    return frame(WINDOW_UPDATE, 0, 0, size) + frame(WINDOW_UPDATE, 0, 1, size)


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield kind and payload of the frames that come, until the connection ends."""
    with connection.makefile("rb") as incoming:
        while len(head := incoming.read(9)) == 9:
            yield head[3], incoming.read(int.from_bytes(head[:3], "big"))


def settings(payload: bytes) -> dict[int, int]:
    """Return what a SETTINGS frame says, by numbers (RFC 9113, 6.5.2)."""
    return dict(struct.iter_unpack(">HI", payload))
