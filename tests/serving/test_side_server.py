import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcnseg.client import Client
from fcnseg.errors import UsageError
from serving.server import ServerConfig
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.scraping import scrape
from tests.server_process import free_port
from tests.waiting import wait_until

IMAGE = np.full((4, 4, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def segmenter(tiny_model: Path) -> GatedSegmenter:
    return GatedSegmenter(tiny_model)


def ask(address: str | None, path: str, method: str = "GET") -> int:
    """Return the status of an answer."""
    request = urllib.request.Request(f"http://{address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def answers(address: str, path: str, status: int) -> bool:
    """Tell whether a server answers with a status; one that cannot be reached does not."""
    try:
        return ask(address, path) == status
    except OSError:
        return False


def test_ready_is_503_while_warming_200_while_serving_and_503_while_draining(
    segmenter: GatedSegmenter, tiny_model: Path
) -> None:
    registry = registry_of(segmenter, tiny_model, replace(CPU_CONFIG, warm_sizes=((8, 12),)))
    config = ServerConfig(http_port=free_port())
    address = f"127.0.0.1:{config.http_port}"
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(RunningServer, registry, config)
        assert segmenter.begun.acquire(timeout=60)
        assert (ask(address, "/readyz"), ask(address, "/healthz")) == (503, 200)
        assert scrape(address).value("fcnseg_ready") == 0
        segmenter.gate.set()
        server = starting.result(60)
        assert (ask(address, "/readyz"), ask(address, "/healthz")) == (200, 200)
        assert scrape(address).value("fcnseg_ready") == 1

        segmenter.gate.clear()
        while segmenter.begun.acquire(blocking=False):
            pass
        with Client(server.address) as client:
            held = pool.submit(client.segment, IMAGE)
            assert segmenter.begun.acquire(timeout=60)
            server.begin_stop()
            wait_until(lambda: answers(address, "/readyz", 503))
            assert ask(address, "/healthz") == 200
            assert scrape(address).value("fcnseg_ready") == 0
            segmenter.gate.set()
            held.result(60)
        server.wait_stopped()
    with pytest.raises(OSError, match="refused"):
        ask(address, "/healthz")


def test_a_server_whose_event_loop_stands_is_not_alive(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server._LONGEST_SILENCE_S", 2.5)
    released = threading.Event()
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert server.http_address is not None
        server.hold_up(released)
        wait_until(lambda: ask(server.http_address, "/healthz") == 503)
        released.set()
        wait_until(lambda: ask(server.http_address, "/healthz") == 200)


def test_metrics_are_in_the_text_format(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert scrape(server).content_type == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("version", ["abc", "1.x", "", "1.0.0"])
def test_metrics_are_written_whatever_version_is_accepted(
    tiny_model: Path, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failure would be a traceback on stderr, among the lines of the log."""
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        accepted = {"Accept": f"application/openmetrics-text; version={version}"}
        request = urllib.request.Request(f"http://{server.http_address}/metrics", headers=accepted)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert b"fcnseg_ready 1.0" in answer.read()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/../etc", 404),
        ("POST", "/readyz", 405),
        ("POST", "/metrics", 405),
        ("HEAD", "/readyz", 200),
    ],
)
def test_what_is_not_there_is_told(tiny_model: Path, method: str, path: str, status: int) -> None:
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert ask(server.http_address, path, method) == status


def test_each_answer_tells_its_own_length(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert ask(server.http_address, "/") == 404
        for path, text in {"/readyz": b"ready\n", "/healthz": b"alive\n"}.items():
            with urllib.request.urlopen(f"http://{server.http_address}{path}", timeout=10) as answer:
                assert answer.read() == text
                assert answer.headers.get_all("Content-Length") == [str(len(text))]


def test_a_connection_that_says_nothing_holds_up_nobody(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert server.http_address is not None
        host, _, port = server.http_address.rpartition(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(b"GET /metr")
            assert ask(server.http_address, "/readyz") == 200
            server.stop()


def test_a_connection_that_says_little_at_a_time_is_ended(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.side_server._LONGEST_REQUEST_S", 0.5)
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        slow = connect(server)

        def has_ended() -> bool:
            try:
                slow.sendall(b"a")
            except OSError:
                return True
            return False

        with slow:
            slow.sendall(b"GET /healthz")
            wait_until(has_ended)


def test_of_many_connections_the_oldest_are_ended_and_probes_are_answered(tiny_model: Path) -> None:
    """Each has a thread, of which a process may have so many."""
    with running_server(tiny_model, ServerConfig(http_port=0)) as server, ExitStack() as connections:
        many = [connections.enter_context(connect(server)) for _ in range(200)]
        for connection in many:
            connection.sendall(b"GET /healthz")
        assert server.http_address is not None
        assert ask(server.http_address, "/readyz") == 200
        many[0].settimeout(3)
        assert many[0].recv(1) == b""
        wait_until(lambda: sum("process_request" in thread.name for thread in threading.enumerate()) <= 128)
        many[-1].sendall(b" HTTP/1.0\r\n\r\n")
        assert many[-1].recv(12) == b"HTTP/1.0 200"


def connect(server: RunningServer) -> socket.socket:
    assert server.http_address is not None
    host, _, port = server.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_there_is_no_side_server_unless_it_is_asked_for(tiny_model: Path) -> None:
    with running_server(tiny_model) as server:
        assert server.http_address is None


def test_http_port_in_use_is_told_with_the_remedy(segmenter: GatedSegmenter, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} of 127\.0\.0\.1 is in use; .*--http-port 0"):
            RunningServer(registry_of(segmenter, tiny_model), ServerConfig(http_port=port))
