"""A name server that tells one IPv4 address for every name, and can be told another."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ADDRESS = 1
_POINTER_TO_NAME, _INTERNET, _SECONDS_TO_LIVE = 0xC00C, 1, 0
_ANSWERS = b"\x81\x80"


class NameServer:
    """Answers by the rules of RFC 1035 at `address`, as HOST:PORT.

    Args:
        told: The IPv4 address that every name stands for; may be set later.
    """

    def __init__(self, told: str) -> None:
        self.told = told
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def close(self) -> None:
        """Answer no more."""
        with suppress(OSError):  # it is not connected, and wakes the thread all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._serving.join()
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                query, asker = self._socket.recvfrom(512)
                if not query:
                    return
                end = query.index(b"\0", 12) + 5
                (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
                record = struct.pack(">HHHIH", _POINTER_TO_NAME, kind, _INTERNET, _SECONDS_TO_LIVE, 4)
                found = record + socket.inet_aton(self.told) if kind == _ADDRESS else b""
                counts = struct.pack(">HHHH", 1, 1 if found else 0, 0, 0)
                self._socket.sendto(query[:2] + _ANSWERS + counts + query[12:end] + found, asker)


@contextmanager
def name_server(told: str) -> Iterator[NameServer]:
    """Answer with an address."""
    server = NameServer(told)
    try:
        yield server
    finally:
        server.close()
