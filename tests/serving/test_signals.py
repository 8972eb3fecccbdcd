"""How signals end the server's process."""

import socket
import subprocess
import sys
from pathlib import Path

import grpc

from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests import http2
from tests.server_process import free_port, server_process

PIXEL = pb.SegmentRequest(raw=pb.RawImage(height=1, width=1, rgb=bytes(3)))
# Serves a model whose runs never end.
SERVE = """
import asyncio, sys, threading
from pathlib import Path
from serving.server import ServerConfig, serve_until_stopped
from tests.gated_segmenter import GatedSegmenter, registry_of

class Endless(GatedSegmenter):
    def wait(self):
        print("a run has begun", flush=True)
        threading.Event().wait()

path = Path(sys.argv[1])
registry = registry_of(Endless(path), path)
asyncio.run(serve_until_stopped(registry, ServerConfig(grace_s=0.1), lambda address, _: print(address, flush=True)))
"""


def test_a_run_that_outlasts_the_grace_does_not_keep_the_process(tiny_model: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tiny_model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            with grpc.insecure_channel(process.stdout.readline().strip()) as channel:
                answer = SegmentationServiceStub(channel).Segment.future(PIXEL, timeout=60)
                assert process.stdout.readline() == "a run has begun\n"
                process.terminate()
                _, log = process.communicate(timeout=60)
            assert answer.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            process.kill()
    assert process.returncode == 0
    assert log.endswith("has outlasted the grace; the process ends without it\n")


def test_a_server_whose_transport_has_ended_by_itself_is_not_left_deaf(tiny_model: Path, tmp_path: Path) -> None:
    """By the name of a method that is no text, at which grpcio 1.85 ends; one that goes on needs none of this."""
    log = tmp_path / "log"
    with server_process(tiny_model, free_port(), log=log) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(http2.greeting() + http2.begin("\udcff/\udcff"))
            assert any(kind in {http2.HEADERS, http2.GOAWAY} for kind, _ in http2.frames(stranger))
        assert server.wait_stopped() == 1
    assert log.read_text().endswith("cannot be started again; the process ends, to be started anew\n")
