"""Connections that no client would make: silent ones, noise, uploads that never end, answers that nobody reads."""

import random
import socket
import struct
import threading
from collections.abc import Callable

from fcnseg.v1 import segmentation_pb2 as pb
from tests import http2
from tests.soak.tally import Tally


class Stranger:
    """Connects in one odd way after another, until it is told to stop.

    Args:
        address: The server's.
        http_address: Where it answers probes.
        tally: Counts connections.
        rng: Decides what is done.
        patience_s: For how long a connection is kept at most.
    """

    def __init__(
        self, address: str, http_address: str, tally: Tally, rng: random.Random, patience_s: float = 8.0
    ) -> None:
        self._address, self._http_address = address, http_address
        self._tally, self._rng, self._patience_s = tally, rng, patience_s
        self._ways: dict[str, Callable[[], bytes]] = {
            "silent": lambda: b"",
            "silent after the preface": http2.greeting,
            "noise": lambda: rng.randbytes(rng.randint(1, 3000)),
            "noise after the preface": lambda: http2.greeting() + rng.randbytes(rng.randint(1, 3000)),
            "odd frames": self._odd_frames,
            "upload that does not end": lambda: http2.greeting() + http2.begin() + http2.send_part(4_000_000, 8000),
            "answer that nobody reads": self._unread,
            "HTTP/1 that does not end": lambda: b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Y: z",
            "HTTP/1 noise": lambda: rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n",
        }

    def run(self, stopping: threading.Event) -> None:
        """Connect until told to stop."""
        while not stopping.is_set():
            way = self._rng.choice(list(self._ways))
            host, port = (self._http_address if "HTTP/1" in way else self._address).split(":")
            try:
                with socket.create_connection((host, int(port)), timeout=10) as connection:
                    self._send(connection, self._ways[way](), stopping)
                    stopping.wait(self._patience_s * self._rng.random() ** 2)
                    if self._rng.random() < 0.5:  # without a farewell
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except (BrokenPipeError, ConnectionResetError):  # the server has had enough
                self._tally.call(way, "closed by the server", {"closed by the server"})
            else:
                self._tally.call(way, "left", {"left"})

    def _send(self, connection: socket.socket, data: bytes, stopping: threading.Event) -> None:
        if self._rng.random() < 0.7:
            connection.sendall(data)
            return
        for place in range(0, min(len(data), 300), 10):  # slowly
            connection.sendall(data[place : place + 10])
            if stopping.wait(0.03):
                return

    def _odd_frames(self) -> bytes:
        rng = self._rng
        frames = (
            http2.frame(rng.randrange(12), rng.randrange(256), rng.randrange(5), rng.randbytes(20))
            for _ in range(rng.randint(1, 30))
        )
        return http2.greeting() + b"".join(frames)

    def _unread(self) -> bytes:
        """A sound request, from a client that lets not a byte of its answer come."""
        image = pb.RawImage(height=50, width=100, rgb=self._rng.randbytes(15_000))
        request = pb.SegmentRequest(model_name="tiny", raw=image, encoding=pb.CLASS_MAP_ENCODING_RAW)
        return http2.greeting(window=0) + http2.begin() + http2.send(request)
