"""A relay between clients and a server, whose connections can fall silent as those behind a failed router do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PING = bytes([0, 0, 8, 6, 0])  # RFC 9113: the length, the type, and no flag, which an answer has


class Relay:
    """Takes connections at `address` and hands on what comes, until it is closed.

    Args:
        server: Where to, as HOST:PORT.

    Attributes:
        pings: How many pings clients have sent, each by itself.
    """

    def __init__(self, server: str) -> None:
        host, port = server.split(":")
        self._server = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.pings = 0
        self._ends: list[socket.socket] = []
        self._silences: list[threading.Event] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def fall_silent(self) -> None:
        """Swallow what comes over the connections that there are, and close none of them; new ones are served."""
        for silence in self._silences:
            silence.set()

    def close(self) -> None:
        """Close all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for end in self._ends:
            with suppress(OSError):  # the other side has gone
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in [self._listener, *self._ends]:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                self._ends.append(client)
                with suppress(OSError):  # the server is not there
                    self._join(client, socket.create_connection(self._server))

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        self._ends.append(server)
        silence = threading.Event()
        self._silences.append(silence)
        for source, sink in ((client, server), (server, client)):
            thread = threading.Thread(target=self._hand_on, args=(source, sink, silence), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _hand_on(self, source: socket.socket, sink: socket.socket, silence: threading.Event) -> None:
        with suppress(OSError):  # one side has gone
            while data := source.recv(1 << 16):
                self.pings += data.startswith(_PING) and sink.getpeername() == self._server
                if not silence.is_set():
                    sink.sendall(data)
            if not silence.is_set():
                sink.shutdown(socket.SHUT_WR)


@contextmanager
def relay_to(server: str) -> Iterator[Relay]:
    """Relay to a server at HOST:PORT."""
    relay = Relay(server)
    try:
        yield relay
    finally:
        relay.close()
