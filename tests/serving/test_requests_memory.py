"""What a request leaves behind, above all one that fails: nothing, though the collector of cycles does not come by."""

import asyncio
import gc
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fcnseg.allocator import release_freed_memory
from fcnseg.cores import usable_cores
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.types import Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from serving.batcher import Executed
from serving.converters import write_answer
from serving.extras import read_extras, write_extras
from serving.oip import inference_pb2 as oip
from serving.patience import Patience
from serving.pipeline import Pipeline, held_bytes
from serving.registry import ModelRegistry
from serving.servicer import demands_of
from tests.process_memory import forget_peak, peak, reset_allocator, resident
from tests.running_server import CPU_CONFIG, running_server
from tests.waiting import wait_until

SEGMENT, STREAM = "/fcnseg.v1.SegmentationService/Segment", "/fcnseg.v1.SegmentationService/SegmentStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
BYTES = 16 << 20
COUNT = 30
SIDE, SLACK = 2000, 4 << 20
LARGE = pb.SegmentRequest(raw=pb.RawImage(height=2048, width=2048, rgb=bytes(3 << 22))).SerializeToString()
DAMAGED = b"BM" + bytes(BYTES)


@pytest.fixture(autouse=True)
def allocator() -> None:
    """What other tests have done to the process's allocator is undone."""
    reset_allocator()


def tensor(data: bytes) -> bytes:
    """Return a request for one encoded image."""
    content = len(data).to_bytes(4, "little") + data
    image = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    return oip.ModelInferRequest(model_name="tiny", inputs=[image], raw_input_contents=[content]).SerializeToString()


REQUESTS = {
    "a damaged file": (SEGMENT, pb.SegmentRequest(encoded=DAMAGED).SerializeToString()),
    "raw pixels of another size": (
        SEGMENT,
        pb.SegmentRequest(raw=pb.RawImage(height=9, width=9, rgb=bytes(BYTES))).SerializeToString(),
    ),
    "an unknown model": (SEGMENT, pb.SegmentRequest(model_name="x", encoded=DAMAGED).SerializeToString()),
    "an unknown class": (SEGMENT, pb.SegmentRequest(classes=["x"], encoded=DAMAGED).SerializeToString()),
    "bytes that are no message": (SEGMENT, b"\xff" * BYTES),
    "a damaged file in a tensor": (INFER, tensor(DAMAGED)),
    "a tensor of another size": (INFER, tensor(DAMAGED)[:-1] + b"\0\0"),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def channel(tiny_model: Path) -> Iterator[grpc.Channel]:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.usefixtures("no_collector")
def test_a_refused_request_is_gone(channel: grpc.Channel, what: str) -> None:
    method, request = REQUESTS[what]
    call = channel.unary_unary(method)

    def fail() -> None:
        future = call.future(request, timeout=20)  # an error that is raised would hold the request here
        assert future.code() is not grpc.StatusCode.OK

    stays_small(fail)


@pytest.mark.usefixtures("no_collector")
def test_an_answered_request_is_gone(channel: grpc.Channel) -> None:
    call = channel.unary_unary(SEGMENT)
    stays_small(lambda: call(LARGE, timeout=20))


@pytest.mark.slow
@pytest.mark.usefixtures("no_collector")
def test_a_request_whose_client_went_away_is_gone(channel: grpc.Channel) -> None:
    call = channel.unary_unary(SEGMENT)

    moments = itertools.cycle(range(10))

    def leave() -> None:
        future = call.future(LARGE, timeout=20)
        time.sleep(next(moments) * 0.005)  # wherever its request is then
        future.cancel()

    stays_small(leave)


@pytest.mark.usefixtures("no_collector")
def test_items_of_a_stream_that_fail_are_gone(channel: grpc.Channel) -> None:
    item = pb.SegmentStreamRequest(request=pb.SegmentRequest(encoded=DAMAGED)).SerializeToString()
    call = channel.stream_stream(STREAM)

    def fail() -> None:
        answers = [pb.SegmentStreamResponse.FromString(answer) for answer in call(iter([item] * 2), timeout=20)]
        assert [answer.WhichOneof("result") for answer in answers] == ["failure"] * 2

    stays_small(fail)


class Image(np.ndarray[Any, Any]):
    """An array that can be watched."""


@pytest.mark.usefixtures("no_collector")
async def test_what_waits_for_a_thread_is_gone_as_soon_as_it_is_cancelled() -> None:
    pipeline, gate = Pipeline(ImageLimits()), threading.Event()
    busy = [asyncio.create_task(pipeline.in_thread(gate.wait, 60)) for _ in range(usable_cores())]
    image = np.zeros((4, 4, 3), np.uint8).view(Image)
    watched = weakref.ref(image)
    waiting = asyncio.create_task(pipeline.in_thread(np.sum, image))
    del image
    await asyncio.sleep(0)  # now all threads are busy, and it waits
    assert watched() is not None
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    del waiting
    gone = watched() is None
    gate.set()
    await asyncio.gather(*busy)
    pipeline.close()
    assert gone


def test_an_answer_is_made_with_one_copy_of_its_class_map_beside_that_in_the_message(tiny_model: Path) -> None:
    model = ModelRegistry([tiny_model], CPU_CONFIG).models[0]
    class_map = np.ones((8192, 8192), np.uint8)
    segmentation = Segmentation(class_map, np.zeros((3, 1, 1), np.float32), None, model.info.label_map)
    response = pb.SegmentResponse()
    forget_peak()
    before = resident()
    write_answer(response, Executed(segmentation, 0.0, 0.0, 1), Encoding.RAW, model)
    assert 0.9 * class_map.nbytes < peak() - before < 2.5 * class_map.nbytes


@pytest.mark.parametrize("encoding", ["RAW", "ZSTD", "PNG", "COCO_RLE"])
@pytest.mark.parametrize(
    "extras",
    [
        pb.SegmentRequest(),
        pb.SegmentRequest(confidence=True, classes=["red"]),
        pb.SegmentRequest(overlay=pb.OverlayQuery(quality=100)),
        pb.SegmentRequest(regions=pb.RegionQuery(threshold=0.1, limit=1000)),
        pb.SegmentRequest(
            confidence=True,
            classes=["red"],
            heatmap_classes=["red", "blue"],
            overlay=pb.OverlayQuery(quality=100),
            regions=pb.RegionQuery(threshold=0.1, limit=1000),
        ),
    ],
    ids=["plain", "confidence", "overlay", "regions", "all"],
)
def test_an_answer_takes_no_more_than_is_held_for_it(
    tiny_model: Path, extras: pb.SegmentRequest, encoding: str
) -> None:
    """Of a chequered class map, which takes the most."""
    (model,) = ModelRegistry([tiny_model], CPU_CONFIG).models
    label_map, geometry = model.info.label_map, model.info.geometry
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    class_map = (np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2).astype(np.uint8)
    heatmap = np.zeros((3, geometry.y.cells(SIDE), geometry.x.cells(SIDE)), np.float32)
    heatmap[0, ::2, ::2] = 5
    confidence = class_map * np.uint8(200) if extras.confidence else None
    executed = Executed(Segmentation(class_map, heatmap, confidence, label_map), 0.0, 0.0, 1)
    known = sum(array.nbytes for array in (image, class_map, heatmap, confidence) if array is not None)
    wanted, kind = read_extras(extras, label_map), Encoding[encoding]
    held = held_bytes(model, SIDE, SIDE, demands_of(wanted, kind))
    release_freed_memory()
    forget_peak()
    before = resident()
    response = pb.SegmentResponse()
    write_answer(response, executed, kind, model, wanted.classes)
    write_extras(response, wanted, image, executed.segmentation, geometry, Patience(math.inf))
    taken = known + peak() - before
    assert held / 3 < taken < held + SLACK


def stays_small(fail: Callable[[], None]) -> None:
    """See that requests, all together many times as large as what they may leave, leave no more than a few of them."""
    for _ in range(3):
        fail()
    before = resident()
    for _ in range(COUNT):
        fail()
    wait_until(lambda: resident() - before < COUNT * BYTES // 4)
