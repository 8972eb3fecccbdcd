"""Several server processes at one port."""

import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import fcnseg
from fcnseg.client import Client
from fcnseg.errors import FcnsegError, UsageError
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.processes import Part, held_port
from tests.scraping import scrape
from tests.server_process import ServerProcess, free_port, server_process
from tests.serving.test_command import BLUE, RUN, fail, serving
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

OK = {"method": "fcnseg.v1.SegmentationService/Segment", "code": "OK"}
MOST_CONNECTIONS = 64
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)

reads_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads another process's children")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_told_its_part(pid: int) -> bool:
    """Tell whether a process runs the command: one that stood before would keep the one that starts it."""
    return b"FCNSEG_SERVE_PART" in Path(f"/proc/{pid}/environ").read_bytes()


@contextmanager
def killed_at_the_end(pid: int) -> Iterator[list[int]]:
    """Give a process's children, and leave none of them, whatever they were told and however they stand."""
    started = children(pid)
    try:
        yield started
    finally:
        for child in started:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def server(tiny_model: Path, log: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, free_port(), "--processes", "2", "--http-port", "0", log=log) as server:
        yield server


@pytest.fixture(scope="module")
def lasting(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for tests that leave it as it was."""
    log = tmp_path_factory.mktemp("lasting") / "log.txt"
    with server_process(tiny_model, free_port(), "--processes", "2", "--http-port", "0", log=log) as server:
        yield server


def answered_by(server: ServerProcess) -> dict[str, float]:
    """How many requests each of the processes has answered."""
    assert server.http_address is not None
    found = scrape(server.http_address)
    return {number: found.value("fcnseg_requests_total", process=number, **OK) for number in ("1", "2")}


def probe(server: ServerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.http_address}{path}", timeout=60) as answer:
            status: int = answer.status
    except urllib.error.HTTPError as error:
        return error.code
    return status


def test_connections_to_one_port_are_answered_by_all_of_them(lasting: ServerProcess, tiny_model: Path) -> None:
    expected = fcnseg.load(tiny_model, "cpu", threads=1).segment(IMAGE).class_map
    before = sum(answered_by(lasting).values())
    with ExitStack() as connections:
        for count in range(1, MOST_CONNECTIONS + 1):
            client = connections.enter_context(Client(lasting.address))
            assert np.array_equal(client.segment(IMAGE).class_map, expected)
            if count % 8 == 0 and all(answered_by(lasting).values()):
                break
    assert min(answered_by(lasting).values()) > 0
    # What a client sees may be counted a moment later.
    wait_until(lambda: sum(answered_by(lasting).values()) == before + count, tell=lambda: answered_by(lasting))
    assert lasting.http_address is not None
    families = scrape(lasting.http_address)
    assert families.value("fcnseg_ready") == 2
    assert {labels["process"] for labels in families.labels("process_resident_memory_bytes")} == {"1", "2"}
    assert (probe(lasting, "/healthz"), probe(lasting, "/readyz")) == (200, 200)


@reads_proc
def test_all_of_them_stop_at_sigterm(server: ServerProcess, log: Path) -> None:
    started = children(server.pid)
    assert len(started) == 2
    server.begin_stop()
    assert server.wait_stopped() == 0
    assert not any(map(runs, started))
    stops = re.findall(r"stopping: requests under way have 30 s process=(\d)", log.read_text())
    assert sorted(stops) == ["1", "2"]


@reads_proc
@pytest.mark.parametrize("position", [0, 1])
def test_where_one_is_lost_the_others_stop_and_the_exit_code_tells(
    server: ServerProcess, log: Path, position: int
) -> None:
    started = children(server.pid)
    os.kill(started[position], signal.SIGKILL)
    assert server.wait_stopped() == 128 + signal.SIGKILL
    assert not any(map(runs, started))
    assert re.search(r"ERROR .*: process \d of 2 ended with exit code 137; the others are stopped", log.read_text())


@reads_proc
def test_none_of_them_outlives_the_one_that_started_them(server: ServerProcess) -> None:
    started = children(server.pid)
    server.kill()
    wait_until(lambda: not any(map(runs, started)))


@reads_proc
def test_one_that_does_not_answer_is_told_by_the_probes(lasting: ServerProcess) -> None:
    stands, _ = children(lasting.pid)
    assert lasting.http_address is not None
    os.kill(stands, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(3) as asking:  # each answer takes 5 s
            alive, ready = (asking.submit(probe, lasting, path) for path in ("/healthz", "/readyz"))
            metrics = asking.submit(scrape, lasting.http_address).result()
        assert (alive.result(), ready.result()) == (503, 503)
        assert sorted(metrics.value("fcnseg_ready", process=number) for number in ("1", "2")) == [0, 1]
        assert len(metrics.labels("fcnseg_ready")) == 2
        assert len(metrics.labels("process_resident_memory_bytes")) == 1
    finally:
        os.kill(stands, signal.SIGCONT)
    wait_until(lambda: probe(lasting, "/readyz") == 200)


@reads_proc
def test_a_scrape_is_answered_in_time_where_none_of_them_answers(tiny_model: Path) -> None:
    with (
        server_process(tiny_model, free_port(), "--processes", "3", "--http-port", "0") as server,
        killed_at_the_end(server.pid) as started,
    ):
        for child in started:
            os.kill(child, signal.SIGSTOP)
        assert server.http_address is not None
        metrics = scrape(server.http_address, timeout_s=10)  # as long as Prometheus waits
        assert metrics.samples == {("fcnseg_ready", (("process", number),)): 0 for number in ("1", "2", "3")}


def test_they_are_asked_past_the_proxy_of_the_environment(tiny_model: Path) -> None:
    proxy = {"http_proxy": f"http://127.0.0.1:{free_port()}"}
    options = ("--processes", "2", "--http-port", "0")
    with server_process(tiny_model, free_port(), *options, environment=proxy) as server:
        assert (probe(server, "/healthz"), probe(server, "/readyz")) == (200, 200)
        assert server.http_address is not None
        assert scrape(server.http_address).value("fcnseg_ready") == 2


@reads_proc
def test_those_that_finish_are_alive_when_another_has_ended(tiny_model: Path) -> None:
    options = ("--processes", "2", "--http-port", "0", "--drain-delay", "600")
    with server_process(tiny_model, free_port(), *options) as server, killed_at_the_end(server.pid) as started:
        server.begin_stop()
        wait_until(lambda: probe(server, "/readyz") == 503)
        os.kill(started[0], signal.SIGKILL)
        wait_until(lambda: len(children(server.pid)) == 1)
        wait_until(lambda: probe(server, "/healthz") == 200)
        assert server.exit_code is None


@reads_proc
def test_a_second_signal_ends_also_one_that_stands(server: ServerProcess) -> None:
    with killed_at_the_end(server.pid) as started:
        os.kill(started[0], signal.SIGSTOP)
        server.begin_stop()
        wait_until(lambda: not runs(started[1]))
        server.begin_stop()
        assert server.wait_stopped() == 128 + signal.SIGKILL
        assert not any(map(runs, started))


@reads_proc
def test_what_is_under_way_is_answered_where_all_get_the_signal_of_a_service_manager(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=2000)
    with server_process(path, free_port(), "--processes", "2", "--grace", "600") as server:
        started = children(server.pid)
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=600)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            segment = SegmentationServiceStub(channel).Segment
            answers = [segment.future(BLUE, timeout=600) for _ in range(6)]  # seconds of work, within the grace
            answers[0].result()
            for child in started:
                os.kill(child, signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            server.begin_stop()
            assert [answer.code() for answer in answers] == [grpc.StatusCode.OK] * len(answers)
        server.wait_stopped()
        assert not any(map(runs, started))


@reads_proc
def test_one_that_ends_before_it_listens_is_told_and_the_others_are_not_waited_for(tiny_model: Path, log: Path) -> None:
    options = ("--device", "cpu", "--port", "0", "--processes", "3")
    with (
        log.open("w") as stderr,
        subprocess.Popen([*RUN, "serve", str(tiny_model), *options], stderr=stderr) as process,
    ):
        try:
            wait_until(lambda: len(children(process.pid)) == 3)
            with killed_at_the_end(process.pid) as started:
                wait_until(lambda: all(map(is_told_its_part, started)))
                _, lost, stands = started
                os.kill(stands, signal.SIGSTOP)
                os.kill(lost, signal.SIGKILL)
                told = re.compile("process [23] of 3 ended with exit code 137; the others are stopped")
                wait_until(lambda: told.search(log.read_text()) is not None, tell=log.read_text)
            process.wait(60)
        finally:
            process.kill()


@reads_proc
def test_none_listens_before_the_models_of_all_are_open(tiny_model: Path) -> None:
    port = free_port()
    with serving(str(tiny_model), "--device", "cpu", "--port", str(port), "--processes", "2") as process:
        wait_until(lambda: len(children(process.pid)) == 2)
        with killed_at_the_end(process.pid) as (_, late):
            wait_until(lambda: is_told_its_part(late))
            os.kill(late, signal.SIGSTOP)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            os.kill(late, signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving ")
            assert process.stdout.readline() == f"listening on 127.0.0.1:{port}\n"


@reads_proc
def test_where_nobody_reads_what_is_printed_they_end_first(tiny_model: Path) -> None:
    port = str(free_port())
    options = ("--device", "cpu", "--port", port, "--processes", "2", "--drain-delay", "1")
    with serving(str(tiny_model), *options) as process:
        assert process.stdout is not None
        process.stdout.close()
        started: set[int] = set()
        wait_until(lambda: started.update(children(process.pid)) or process.poll() is not None)
        assert process.returncode == 1
        assert len(started) == 2
        assert not any(map(runs, started))


def test_what_is_wrong_with_a_model_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    ended = fail(str(path), "--device", "cpu", "--port", "0", "--processes", "3")
    assert ended.returncode == fail(str(path), "--device", "cpu", "--port", "0").returncode
    (line,) = ended.stderr.splitlines()
    assert "broken.onnx" in line


def test_a_port_in_use_is_told_before_any_is_started(lasting: ServerProcess, tiny_model: Path) -> None:
    port = lasting.address.rpartition(":")[2]
    ended = fail(str(tiny_model), "--device", "cpu", "--port", port, "--processes", "2")
    assert f"port {port} of 127.0.0.1 is in use" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_one_port_cannot_be_for_both_grpc_and_http(tiny_model: Path) -> None:
    port = str(free_port())
    ended = fail(str(tiny_model), "--device", "cpu", "--port", port, "--http-port", port, "--processes", "2")
    assert ended.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use; choose another with --http-port" in ended.stderr


def test_an_address_that_the_machine_has_not_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    elsewhere = "192.0.2.1"
    resolve(elsewhere, "127.0.0.1")
    with held_port("localhost", 0) as port, socket.create_server(("127.0.0.1", port), reuse_port=True):
        pass
    resolve(elsewhere)
    with pytest.raises(UsageError, match="cannot listen on localhost:0"), held_port("localhost", 0):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        resolve(elsewhere, "127.0.0.1")
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on localhost:{port}"), held_port("localhost", port):
            pass


def test_a_free_port_is_found_for_all_of_them(tiny_model: Path) -> None:
    options = ("--device", "cpu", "--threads", "1", "--port", "0", "--processes", "2")
    with serving(str(tiny_model), *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving ")
        listening = re.fullmatch(r"listening on (127\.0\.0\.1:[1-9]\d*)\n", process.stdout.readline())
        assert listening is not None
        with Client(listening[1]) as client:
            assert client.segment(IMAGE).class_map.shape == (30, 40)
        process.terminate()
        assert process.wait(60) == 0


def test_what_they_tell_is_printed_in_the_encoding_in_which_they_tell_it(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "größe.onnx"
    path.write_bytes(tiny_model.read_bytes())
    command = [*RUN, "serve", str(path), "--device", "cpu", "--port", "0", "--processes", "2"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving größe (".encode("latin-1"))
            assert process.stdout.readline().startswith(b"listening on ")
        finally:
            process.kill()


def test_a_stop_before_they_listen_leaves_none_behind(tiny_model: Path) -> None:
    with serving(str(tiny_model), "--device", "cpu", "--port", "0", "--processes", "2") as process:
        started: list[int] = []

        def one_is_there() -> bool:
            started[:] = children(process.pid)
            return bool(started)

        wait_until(one_is_there)
        process.terminate()
        assert process.wait(60) == 0
        wait_until(lambda: not any(map(runs, started)))


def test_who_would_change_the_models_of_one_of_them_is_refused(lasting: ServerProcess) -> None:
    with Client(lasting.address) as client, pytest.raises(FcnsegError, match="started with --processes; start it"):
        client.reload_model("m")
    ended = fail("m.onnx", "--processes", "2", "--open-admin", "--port", "0")
    assert "--open-admin and --processes contradict each other; give one of them" in ended.stderr


def test_a_part_is_found_once_and_started_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(2, 3, 50051)
    assert Part.of_this_process() is None
    for name, value in part.environment.items():
        monkeypatch.setenv(name, value)
    assert Part.of_this_process() == part
    assert Part.of_this_process() is None
