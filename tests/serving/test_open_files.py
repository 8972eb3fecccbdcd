"""A server that may open few files: it allows itself more, and where it cannot, it waits."""

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from fcnseg.client import Client
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.server_process import ServerProcess, free_port, server_process
from tests.tiny_model import write_tiny_model

FEW = 128
PIXEL = pb.SegmentRequest(raw=pb.RawImage(height=1, width=1, rgb=bytes(3)))
PATIENCE_S = 60


@contextmanager
def few_open_files() -> Iterator[None]:
    """Let this process, and those that it starts, open few files, and allow themselves more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_more_open_files(server: ServerProcess) -> Iterator[None]:
    """Let a server open no file more."""
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))


def connect(address: str | None) -> socket.socket:
    host, _, port = str(address).partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def cpu_s(pid: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, free_port(), "--http-port", "0") as server:
        yield server


def test_more_connections_than_the_shell_allows_files_shut_nobody_out(tiny_model: Path) -> None:
    with ExitStack() as held:
        with few_open_files():
            server = held.enter_context(server_process(tiny_model, free_port()))
        for _ in range(2 * FEW):
            held.enter_context(connect(server.address))
        channel = held.enter_context(grpc.insecure_channel(server.address))
        assert SegmentationServiceStub(channel).Segment(PIXEL, timeout=PATIENCE_S).class_map.height == 1


def test_connections_leave_files_for_probes_and_models(tmp_path: Path) -> None:
    """Each takes a file, and what strangers open must not leave the server without any."""
    path = write_tiny_model(tmp_path / "cat" / "1" / "model.onnx")
    with (
        server_process(tmp_path, free_port(), "--http-port", "0", open_files=FEW) as server,
        Client(server.address) as client,
        ExitStack() as held,
    ):
        client.list_models()  # and is connected from now on
        for _ in range(FEW):
            held.enter_context(connect(server.address))
        with connect(server.http_address) as probe:
            probe.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert b" 200 " in probe.recv(100)
        write_tiny_model(path, licence="changed")
        (model,) = client.load_model("cat")
        assert model.licence == "changed"


def test_probes_that_no_file_can_be_opened_for_are_answered_when_one_can(server: ServerProcess) -> None:
    with ExitStack() as held:
        with no_more_open_files(server):
            probes = [held.enter_context(connect(server.http_address)) for _ in range(100)]
        for probe in probes:
            probe.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        for probe in probes:
            assert b" 200 " in probe.recv(100)


def test_a_probe_that_no_file_can_be_opened_for_takes_no_core(server: ServerProcess) -> None:
    with no_more_open_files(server), connect(server.http_address):
        before = cpu_s(server.pid)
        time.sleep(1)
        assert cpu_s(server.pid) - before < 0.3
