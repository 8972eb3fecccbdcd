"""What clients see of a server that has more to do than it can."""

import asyncio
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from fcnseg.client import Client
from fcnseg.geometry import Geometry
from fcnseg.pictures import encode_jpeg
from fcnseg.regions import search_bytes
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.batcher import BatchingConfig
from serving.image_sources import COPIES
from serving.logs import tells_of_a_fault
from serving.registry import ModelRegistry
from tests import http2
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, running_server
from tests.waiting import wait_until

RED = pb.SegmentRequest(
    raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 0)) * 16), encoding=pb.CLASS_MAP_ENCODING_RAW
)


@pytest.fixture
def gated(tiny_model: Path) -> GatedSegmenter:
    return GatedSegmenter(tiny_model, replace(CPU_CONFIG.options, prove=True))


@contextmanager
def serving(
    gated: GatedSegmenter, tiny_model: Path, *, max_queue: int = 64, max_memory: int = 2**30
) -> Iterator[SegmentationServiceStub]:
    config = replace(CPU_CONFIG, batching=BatchingConfig(max_queue=max_queue), max_memory=max_memory)
    with (
        running_server(registry_of(gated, tiny_model, config)) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        yield SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        gated.gate.set()


def status(error: BaseException | None) -> tuple[grpc.StatusCode, str]:
    assert isinstance(error, grpc.Call)
    return error.code(), error.details()


def test_a_full_queue_is_told_with_the_time_to_ask_again(gated: GatedSegmenter, tiny_model: Path) -> None:
    with serving(gated, tiny_model, max_queue=2) as stub, ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(stub.Segment, RED, timeout=20) for _ in range(3)]
        wait_until(lambda: any(future.done() for future in futures))  # whichever came last
        gated.gate.set()
        (error,) = filter(None, (future.exception(60) for future in futures))
        held = [future.result() for future in futures if future.exception() is None]
        assert [answer.class_map.data for answer in held] == [bytes(16)] * 2
    assert status(error) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "2 images wait or run, and the model's queue is full; ask again later",
    )
    assert isinstance(error, grpc.Call)
    (detail,) = rpc_status.from_call(error).details
    hint = RetryInfo()
    assert detail.Unpack(hint)
    assert 0 < hint.retry_delay.ToMilliseconds() <= 10_000
    pushback = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(pushback) == hint.retry_delay.ToMilliseconds()


def test_images_that_fill_the_memory_keep_others_out_until_they_are_answered(
    gated: GatedSegmenter, tiny_model: Path
) -> None:
    request = pb.SegmentRequest(raw=pb.RawImage(height=300, width=300, rgb=bytes(270_000)))
    with serving(gated, tiny_model, max_memory=2 * 8_000_000) as stub, ThreadPoolExecutor(20) as threads:
        futures = [threads.submit(stub.Segment, request, timeout=20) for _ in range(20)]
        assert gated.begun.acquire(timeout=60)
        wait_until(lambda: sum(future.done() for future in futures) >= 10)
        gated.gate.set()
        errors = [future.exception(60) for future in futures]
        assert stub.Segment(request, timeout=20).class_map.height == 300
    # Each holds message, pixels, ids, scores and what is made of them, about 25 bytes a pixel: some three fit.
    refused = [error for error in errors if error is not None]
    assert 10 <= len(refused) <= 17
    for error in refused:
        code, message = status(error)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "of 8000000 bytes are taken, and this request needs" in message


@pytest.mark.parametrize(
    ("extras", "more"),
    [
        (pb.SegmentRequest(regions=pb.RegionQuery()), search_bytes(40, 20, 200)),
        (pb.SegmentRequest(heatmap_classes=["red", "blue"]), 2 * 200 * 8 * 2),  # in the message, and as that is sent
    ],
    ids=["regions", "heatmaps"],
)
def test_the_memory_of_extras_is_taken_with_the_images(
    gated: GatedSegmenter, tiny_model: Path, extras: pb.SegmentRequest, more: int
) -> None:
    registry = registry_of(gated, tiny_model)
    taken = []
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        for request in (pb.SegmentRequest(), extras):
            gated.gate.clear()
            request.raw.MergeFrom(pb.RawImage(height=40, width=20, rgb=bytes(2400)))
            call = stub.Segment.future(request, timeout=20)
            assert gated.begun.acquire(timeout=60)
            taken.append(registry.held.taken)
            gated.gate.set()
            call.result()
            wait_until(lambda: registry.held.taken == 0)
    plain, extended = taken
    assert extended - plain == more


def test_an_answer_that_its_client_does_not_take_is_held(tiny_model: Path) -> None:
    registry = ModelRegistry([tiny_model], CPU_CONFIG)
    image = np.zeros((300, 300, 3), np.uint8)
    request = pb.SegmentRequest(encoded=encode_jpeg(image), encoding=pb.CLASS_MAP_ENCODING_RAW)
    with running_server(registry) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as unread:
            unread.sendall(http2.greeting(window=0) + http2.begin() + http2.send(request))
            wait_until(lambda: registry.held.taken > 0)
            time.sleep(0.5)
            assert registry.held.taken >= 300 * 300
        wait_until(lambda: registry.held.taken == 0)


def test_a_stream_that_its_client_does_not_read_is_ended_and_holds_one_answer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.streams._LONGEST_WRITE_S", 0.5)
    registry = ModelRegistry([tiny_model], CPU_CONFIG)
    image = encode_jpeg(np.zeros((300, 300, 3), np.uint8))
    request = pb.SegmentRequest(encoded=image, encoding=pb.CLASS_MAP_ENCODING_RAW)
    item, answer_bytes = pb.SegmentStreamRequest(request=request), 300 * 300
    held = COPIES * len(image) + registry.models[0].info.geometry.cells(300, 300) * 3 * 8 + answer_bytes * 10
    with running_server(registry) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as client:
            call = http2.begin("fcnseg.v1.SegmentationService/SegmentStream")
            client.sendall(http2.greeting(window=0) + call + http2.send_all([item] * 4))
            wait_until(lambda: registry.models[0].statistics.success.count == 4)
            wait_until(lambda: registry.held.taken == held)
            client.sendall(http2.take(2 * answer_bytes))
            received = b""
            for kind, payload in http2.frames(client):
                received += payload if kind == http2.DATA else b""
                if b"the client read no answer for 0.5 s" in payload:
                    break
            assert answer_bytes < len(received) < 2 * answer_bytes
            wait_until(lambda: registry.held.taken == 0)


def test_an_image_that_can_never_fit_is_the_clients_mistake(gated: GatedSegmenter, tiny_model: Path) -> None:
    request = pb.SegmentRequest(raw=pb.RawImage(height=300, width=300, rgb=bytes(270_000)))
    with serving(gated, tiny_model, max_memory=2 * 100_000) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request, timeout=20)
    code, message = status(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than the limit of 100000; scale it down or cut it into tiles" in message


def test_an_image_that_cannot_be_run_once_it_is_turned_is_the_clients_mistake(
    gated: GatedSegmenter, tiny_model: Path
) -> None:
    """Of a model that pads columns to more than rows."""
    assert gated.engine.probe is not None
    axis = gated.info.geometry.y
    gated.engine.info = replace(gated.info, geometry=Geometry(axis, replace(axis, alignment=64, minimum=64)))
    gated.engine.probe = replace(gated.engine.probe, bytes_per_pixel=10.0)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = io.BytesIO()
    Image.new("RGB", (200, 4)).save(file, "JPEG", exif=exif)
    with serving(gated, tiny_model, max_memory=2 * 50_000) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Segment(pb.SegmentRequest(encoded=file.getvalue()), timeout=20)
    code, message = status(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "an image of 200 x 4 pixels needs about 128000 bytes while it is run" in message


def test_an_expired_request_leaves_the_queue_and_is_never_run(gated: GatedSegmenter, tiny_model: Path) -> None:
    registry = registry_of(gated, tiny_model)
    admission = registry.models[0].admission
    with (
        running_server(registry) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as threads,
    ):
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        held = threads.submit(stub.Segment, RED, timeout=20)
        assert gated.begun.acquire(timeout=60)
        late = stub.Segment.future(RED, timeout=1)
        wait_until(lambda: admission.pending == 2 or late.done())
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: admission.pending == 1)  # by the server's own clock
        gated.gate.set()
        held.result(60)
        stub.Segment(RED, timeout=10)
    assert [len(batch) for batch in gated.batches] == [1, 1]


def test_a_stream_waits_where_a_call_is_refused(gated: GatedSegmenter, tiny_model: Path) -> None:
    requests = [pb.SegmentStreamRequest(id=str(i), request=RED) for i in range(30)]
    with serving(gated, tiny_model, max_queue=2) as stub:
        threading.Timer(0.5, gated.gate.set).start()
        answers = list(stub.SegmentStream(iter(requests), timeout=60))
    assert [answer.id for answer in answers] == [str(i) for i in range(30)]
    assert all(answer.response.class_map.data == bytes(16) for answer in answers)


def test_a_stream_reads_no_more_than_a_few_images_ahead(gated: GatedSegmenter, tiny_model: Path) -> None:
    large = pb.SegmentRequest(raw=pb.RawImage(height=800, width=800, rgb=bytes(1_920_000)))
    sent = 0

    def send() -> Iterator[pb.SegmentStreamRequest]:
        nonlocal sent
        for _ in range(40):
            sent += 1
            yield pb.SegmentStreamRequest(request=large)

    with serving(gated, tiny_model) as stub:
        answers = stub.SegmentStream(send(), timeout=60)
        assert gated.begun.acquire(timeout=60)
        wait_until(lambda: sent >= 8)
        time.sleep(1)
        sent_while_held = sent
        gated.gate.set()
        assert len(list(answers)) == 40
    assert sent_while_held < 35  # what was read ahead, and what fits into the transport's windows


def test_a_failure_in_a_stream_is_told_in_its_place(gated: GatedSegmenter, tiny_model: Path) -> None:
    gated.gate.set()
    requests = [
        pb.SegmentStreamRequest(id="good", request=RED),
        pb.SegmentStreamRequest(id="bad", request=pb.SegmentRequest(encoded=b"no image")),
        pb.SegmentStreamRequest(id="x" * 257, request=RED),
        pb.SegmentStreamRequest(id="lost", request=pb.SegmentRequest(model_name="nobody")),
        pb.SegmentStreamRequest(id="good again", request=RED),
    ]
    with serving(gated, tiny_model) as stub:
        answers = list(stub.SegmentStream(iter(requests), timeout=20))
    assert [answer.WhichOneof("result") for answer in answers] == ["response", *["failure"] * 3, "response"]
    assert [(a.id, a.failure.code, a.failure.field) for a in answers[1:4]] == [
        ("bad", grpc.StatusCode.INVALID_ARGUMENT.value[0], "encoded"),
        ("x" * 256, grpc.StatusCode.INVALID_ARGUMENT.value[0], "id"),
        ("lost", grpc.StatusCode.NOT_FOUND.value[0], ""),
    ]


def test_a_stopping_server_answers_what_a_stream_has_sent_and_ends_it(gated: GatedSegmenter, tiny_model: Path) -> None:
    more = threading.Event()

    def send() -> Iterator[pb.SegmentStreamRequest]:
        yield pb.SegmentStreamRequest(id="1", request=RED)
        more.wait(20)

    with running_server(registry_of(gated, tiny_model)) as server, grpc.insecure_channel(server.address) as channel:
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        answers = stub.SegmentStream(send(), timeout=20)
        assert gated.begun.acquire(timeout=60)
        server.begin_stop()
        time.sleep(0.2)
        gated.gate.set()
        assert next(answers).id == "1"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        more.set()
        server.wait_stopped()
    assert status(caught.value) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping; continue with another server")


@pytest.mark.parametrize("max_queue", [64, 2], ids=["all let in", "the last waits for room"])
async def test_a_stream_whose_sender_has_ended_it_is_answered_whole_by_a_stopping_server(
    gated: GatedSegmenter, tiny_model: Path, max_queue: int
) -> None:
    registry = registry_of(gated, tiny_model, replace(CPU_CONFIG, batching=BatchingConfig(max_queue=max_queue)))
    with running_server(registry) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
            call = stub.SegmentStream(timeout=20)
            for i in range(3):
                await call.write(pb.SegmentStreamRequest(id=str(i), request=RED))
            await call.done_writing()
            admission = registry.models[0].admission
            await asyncio.to_thread(wait_until, lambda: admission.pending == min(3, max_queue))
            for _ in range(3):  # what was sent before is at the server by then, and read as far as there is room
                await stub.ListModels(pb.ListModelsRequest(), timeout=20)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            server.begin_stop()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            gated.gate.set()
            assert [answer.id async for answer in call] == ["0", "1", "2"]
            assert await call.code() is grpc.StatusCode.OK


def test_a_refusal_counts_as_a_failure_once_and_waiting_does_not(gated: GatedSegmenter, tiny_model: Path) -> None:
    registry = registry_of(gated, tiny_model, replace(CPU_CONFIG, batching=BatchingConfig(1, max_queue=1)))
    statistics = registry.models[0].statistics
    with (
        running_server(registry) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel,
        ThreadPoolExecutor(1) as threads,
    ):
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        held = threads.submit(stub.Segment, RED, timeout=20)
        assert gated.begun.acquire(timeout=60)
        waiting = stub.SegmentStream(iter([pb.SegmentStreamRequest(request=RED)]), timeout=20)
        with pytest.raises(grpc.RpcError):
            stub.Segment(RED, timeout=20)
        time.sleep(0.3)  # the stream tries again and again
        gated.gate.set()
        held.result(60)
        assert next(waiting).HasField("response")
    assert (statistics.success.count, statistics.failure.count) == (2, 1)


def test_an_image_of_a_stream_that_waits_for_memory_keeps_no_place_that_others_need(
    gated: GatedSegmenter, tiny_model: Path
) -> None:
    """It asks for memory again and again, and is one image all the same."""
    gated.gate.set()
    registry = registry_of(gated, tiny_model, replace(CPU_CONFIG, batching=BatchingConfig(max_queue=4)))
    memory = registry.models[0].admission.memory
    photograph = pb.SegmentStreamRequest(
        request=pb.SegmentRequest(encoded=encode_jpeg(np.zeros((40, 40, 3), np.uint8), 90))
    )
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        memory.take(memory.total)
        answers = stub.SegmentStream(iter([photograph]), timeout=20)
        time.sleep(1.5)
        memory.give_back(memory.total)
        assert [answer.WhichOneof("result") for answer in answers] == ["response"]


def test_streams_that_nobody_reads_hold_no_more_than_the_memory_there_is_and_give_it_back(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = ModelRegistry([tiny_model], replace(CPU_CONFIG, max_memory=2 * 40_000_000))
    memory = registry.models[0].admission.memory
    image = pb.RawImage(height=600, width=600, rgb=bytes(1_080_000))
    request = pb.SegmentStreamRequest(
        request=pb.SegmentRequest(raw=image, encoding=pb.CLASS_MAP_ENCODING_RAW, heatmap_classes=["red", "blue"])
    )
    with running_server(registry) as server:
        channels = [grpc.insecure_channel(server.address, options=[("test", i)]) for i in range(4)]
        stubs = [SegmentationServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call] # generated
        calls = [stub.SegmentStream(itertools.repeat(request, 60)) for stub in stubs]
        wait_until(lambda: memory.taken > 10_000_000)
        most = 0
        for _ in range(100):
            most = max(most, memory.taken)
            time.sleep(0.01)
        for call, channel in zip(calls, channels, strict=True):
            call.cancel()
            channel.close()
        wait_until(lambda: memory.taken == 0)
        with Client(server.address) as client:
            client.segment(np.zeros((4, 4, 3), np.uint8))
    assert most <= memory.total
    assert not list(filter(tells_of_a_fault, caplog.records))
