"""How signals end the server's process."""

import subprocess
import sys
from pathlib import Path

import grpc

from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub

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
    assert log.endswith("has outlasted the grace period; the process ends without it\n")
