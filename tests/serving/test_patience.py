"""Who has gone away is not worked for: nobody else is to wait for that."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import fcnseg
from fcnseg import regions
from fcnseg.types import ClassInfo
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.errors import TooLateError
from serving.patience import Patience
from serving.registry import ModelRegistry
from tests.image_folders import noise
from tests.running_server import CPU_CONFIG, running_server
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

CLASSES = 60


def test_patience_ends_with_the_deadline_or_the_caller() -> None:
    with pytest.raises(TooLateError, match="the deadline passed while the answer was written"):
        Patience(time.monotonic()).require()
    patience = Patience(math.inf)
    patience.require()
    patience.end()
    with pytest.raises(TooLateError, match="the caller went away while its answer was written"):
        patience.require()


def test_a_search_for_regions_ends_when_its_caller_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next class, of 60, but for the moment until the server knows."""
    path = write_tiny_model(tmp_path / "model.onnx", class_count=CLASSES)
    image = np.zeros((800, 800, 3), np.uint8)
    image[..., 0] = np.kron(noise(100, 100)[..., 0] % CLASSES, np.ones((8, 8), np.uint8))
    query = pb.RegionQuery(threshold=0.01)
    request = pb.SegmentRequest(raw=pb.RawImage(height=800, width=800, rgb=image.tobytes()), regions=query)
    offline = fcnseg.load(path, "cpu", threads=1)
    segmentation = offline.segment(image)
    assert (segmentation.probabilities.max(axis=(1, 2)) >= 0.01).all()

    begun, ended = [], []

    def watched(info: ClassInfo, *arguments: Any) -> Iterator[regions.Region]:
        begun.append(info.id)
        try:
            yield from search(info, *arguments)
        finally:
            ended.append(info.id)

    search = regions._regions_of
    monkeypatch.setattr(regions, "_regions_of", watched)
    registry = ModelRegistry([path], CPU_CONFIG)
    options = [("grpc.max_send_message_length", 1 << 24)]
    with running_server(registry) as server, grpc.insecure_channel(server.address, options) as channel:
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        call = stub.Segment.future(request, timeout=60)
        wait_until(lambda: bool(begun))
        call.cancel()
        wait_until(lambda: registry.held.taken == 0)
        assert max(begun) < CLASSES // 2
        assert ended == begun
