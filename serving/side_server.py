"""The HTTP side server: whether the event loop turns, whether it takes requests, and its metrics."""

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from fcnseg.hosts import join_port

_log = logging.getLogger(__name__)

_LONGEST_SILENCE_S = 5.0
_LONGEST_REQUEST_S = 15.0
_MOST_CONNECTIONS = 128
# How long to leave a connection waiting where no file can be opened for it: it would be tried at once, without end.
_NO_FILE_S = 0.05
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store"))


class SideServer:
    """Answers `/healthz`, `/readyz` and `/metrics` in threads of its own, so that a busy event loop delays none.

    Args:
        host: The address to listen on.
        port: The port; 0 picks a free one.
        collectors: The metrics.
        is_alive: Tells whether the event loop still turns.
        is_ready: Tells whether health is SERVING.

    Attributes:
        address: The address, as HOST:PORT.

    Raises:
        OSError: The port cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        collectors: CollectorRegistry,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

        class Server(_Server):
            address_family = family

        self._server = make_server(str(address[0]), port, _make_app(collectors, is_alive, is_ready), Server, _Handler)
        self.address = join_port(host, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="side", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """Ends connections that take long, and the oldest where there are many: each has a thread.

    Probes take a moment, so that those who hold connections open shut none of them out.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._began: dict[socket.socket, float] = {}  # the oldest first
        self._changing = threading.Lock()
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, in a thread of its own."""
        with self._changing:
            self._began[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End connections, some times a second; each leaves as its thread ends."""
        latest = time.monotonic() - _LONGEST_REQUEST_S
        with self._changing:
            beyond = len(self._began) - _MOST_CONNECTIONS
            for i, (request, began) in enumerate(self._began.items()):
                if i >= beyond and began > latest:
                    break
                with suppress(OSError):  # it has gone away
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changing:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; where there is no file for it, wait a little."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                time.sleep(_NO_FILE_S)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log, where the library would print: mostly connections that went away."""
        _log.debug("the request of %s, port %s, failed", *client_address[:2], exc_info=True)
        del request


class _Handler(WSGIRequestHandler):
    timeout = _LONGEST_SILENCE_S  # a connection that says nothing must not keep its thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log at DEBUG: probes come every few seconds."""
        _log.debug(format, *args)


def _make_app(
    collectors: CollectorRegistry, is_alive: Callable[[], bool], is_ready: Callable[[], bool]
) -> WSGIApplication:
    metrics = make_wsgi_app(collectors)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return _write_metrics(metrics, environ, start_response)
        if path == "/healthz":
            status, text = (
                ("200 OK", "alive") if is_alive() else ("503 Service Unavailable", "the event loop does not respond")
            )
        elif path == "/readyz":
            status, text = ("200 OK", "ready") if is_ready() else ("503 Service Unavailable", "not ready")
        else:
            status, text = "404 Not Found", "there are /healthz, /readyz and /metrics"
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            status, text = "405 Method Not Allowed", "use GET"
        start_response(status, list(_TEXT))  # the library adds the answer's length to the list
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [f"{text}\n".encode()]

    return app


def _write_metrics(
    metrics: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Answer with the metrics: as plain text where the library fails on what the request accepts, `version=x` say."""
    try:
        return metrics(environ, start_response)
    except Exception:  # noqa: BLE001 - what is no fault of the request's comes again
        return metrics({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)
