"""What a client does where its server is overloaded, killed, restarted or refuses a message for its size."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

import fcnseg
from fcnseg.client import Client
from fcnseg.errors import (
    FieldViolation,
    InvalidRequestError,
    RequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from serving.batcher import BatchingConfig
from serving.errors import StoppingError
from serving.registry import ModelRegistry
from serving.server import ServerConfig
from serving.statuses import Refusal, refuse
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.other_server import ONE_PIXEL, server_that_answers
from tests.running_server import CPU_CONFIG, running_server
from tests.server_process import free_port, server_process
from tests.tiny_model import write_tiny_model

IMAGE = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)  # beyond gRPC's 256 KiB for retries
PIXEL = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture
def gated(tiny_model: Path) -> Iterator[GatedSegmenter]:
    segmenter = GatedSegmenter(tiny_model)
    yield segmenter
    segmenter.gate.set()


@pytest.fixture
def one_at_a_time(gated: GatedSegmenter, tiny_model: Path) -> ModelRegistry:
    """A registry that refuses an image while another is under way."""
    config = replace(CPU_CONFIG, batching=BatchingConfig(max_batch=1, max_queue=1))
    return registry_of(gated, tiny_model, config)


def test_an_overloaded_server_is_told_with_the_time_it_asks_for(
    gated: GatedSegmenter, one_at_a_time: ModelRegistry
) -> None:
    with (
        running_server(one_at_a_time) as server,
        Client(server.address, retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        held = pool.submit(client.segment, IMAGE)
        assert gated.begun.acquire(timeout=60)
        with pytest.raises(ServerOverloadedError, match=f"server {server.address}: 1 images wait or run") as caught:
            client.segment(IMAGE)
        gated.gate.set()
        assert held.result().class_map.shape == (400, 600)
    assert (caught.value.code, caught.value.exit_code) == ("RESOURCE_EXHAUSTED", 1)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0


class Busy:
    """Refuses requests for lack of room a number of times, then answers.

    Attributes:
        times: When requests came.
    """

    def __init__(self, refusals: int, code: grpc.StatusCode, pushback_ms: int | None = None) -> None:
        self._refusals = refusals
        self._code = code
        self._pushback_ms = pushback_ms
        self.times: list[float] = []

    def __call__(self, _: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        self.times.append(time.monotonic())
        if len(self.times) > self._refusals:
            return pb.SegmentResponse(class_map=ONE_PIXEL)
        if self._pushback_ms is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self._pushback_ms)),))
        context.abort(self._code, "no room")
        raise AssertionError

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.times)]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]
)
def test_a_request_is_sent_again_after_growing_pauses(code: grpc.StatusCode) -> None:
    busy = Busy(2, code)
    with server_that_answers(busy) as address, Client(address) as client:
        assert client.segment(IMAGE).class_map.shape == (1, 1)
    assert len(busy.times) == 3
    assert busy.pauses[0] > 0.3
    assert busy.pauses[1] > 0.75


def test_the_server_sets_the_pause_where_it_asks_for_one() -> None:
    busy = Busy(4, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=50)
    with server_that_answers(busy) as address, Client(address, retries=4) as client:
        assert client.segment(IMAGE).class_map.shape == (1, 1)
    assert len(busy.times) == 5
    assert all(pause > 0.04 for pause in busy.pauses)
    assert sum(busy.pauses) < 8  # by itself the client would take that or more


def test_a_server_that_asks_for_no_retry_gets_none() -> None:
    busy = Busy(1, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=-1)
    with server_that_answers(busy) as address, Client(address) as client, pytest.raises(ServerOverloadedError):
        client.segment(IMAGE)
    assert len(busy.times) == 1


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (4, 5)])
def test_when_retries_are_exhausted_the_error_surfaces(retries: int, attempts: int) -> None:
    busy = Busy(9, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=1)
    with server_that_answers(busy) as address, Client(address, retries=retries) as client:
        with pytest.raises(ServerOverloadedError, match="no room") as caught:
            client.segment(IMAGE)
        assert len(busy.times) == attempts
    assert caught.value.retry_after_s is None


def test_many_failures_before_do_not_use_up_the_retries() -> None:
    busy = Busy(20, grpc.StatusCode.UNAVAILABLE, pushback_ms=1)
    with server_that_answers(busy) as address, Client(address, retries=1) as client:
        for _ in range(10):
            with pytest.raises(ServerUnavailableError):
                client.segment(PIXEL)
        assert client.segment(PIXEL).class_map.shape == (1, 1)
    assert len(busy.times) == 21


def test_the_deadline_bounds_all_attempts() -> None:
    busy = Busy(9, grpc.StatusCode.UNAVAILABLE)
    with (
        server_that_answers(busy) as address,
        Client(address, timeout_s=0.8, retries=4) as client,
        pytest.raises((RequestTimeoutError, ServerUnavailableError)),
    ):
        client.segment(IMAGE)
    assert len(busy.times) < 5


def refuse_with(code: grpc.StatusCode, *details: BadRequest | RetryInfo) -> Busy:
    class Refusing(Busy):
        def __call__(self, _: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
            self.times.append(time.monotonic())
            packed = [AnyMessage() for _ in details]
            for target, detail in zip(packed, details, strict=True):
                target.Pack(detail)
            status = Status(code=code.value[0], message="why", details=packed)
            context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError

    return Refusing(0, code)


def test_all_fields_that_a_server_names_are_told() -> None:
    violations = [
        BadRequest.FieldViolation(field="raw.rgb", description="too short"),
        BadRequest.FieldViolation(field="classes[1]", description="no class"),
    ]
    refusing = refuse_with(grpc.StatusCode.INVALID_ARGUMENT, BadRequest(field_violations=violations))
    message = r"why; classes\[1\]: no class"
    with (
        server_that_answers(refusing) as address,
        Client(address) as client,
        pytest.raises(InvalidRequestError, match=message) as caught,
    ):
        client.segment(IMAGE)
    assert caught.value.field == "raw.rgb"
    assert caught.value.violations == (FieldViolation("raw.rgb", "too short"), FieldViolation("classes[1]", "no class"))
    assert len(refusing.times) == 1


def test_the_time_until_there_is_room_is_read_to_the_millisecond() -> None:
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(1250)
    refusing = refuse_with(grpc.StatusCode.RESOURCE_EXHAUSTED, retry)
    with (
        server_that_answers(refusing) as address,
        Client(address, retries=0) as client,
        pytest.raises(ServerOverloadedError) as caught,
    ):
        client.segment(IMAGE)
    assert caught.value.retry_after_s == 1.25


def test_details_that_are_broken_do_not_hide_the_error() -> None:
    def answer(request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff rubbish"),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "why")
        raise AssertionError

    with (
        server_that_answers(answer) as address,
        Client(address) as client,
        pytest.raises(InvalidRequestError, match="why") as caught,
    ):
        client.segment(IMAGE)
    assert (caught.value.field, caught.value.violations) == (None, ())


def test_a_message_beyond_a_limit_is_not_told_as_overload(tiny_model: Path) -> None:
    config = ServerConfig(limits=ImageLimits(max_bytes=1000, max_pixels=1000))
    large = np.zeros((700, 700, 3), np.uint8)
    small = np.zeros((20, 30, 3), np.uint8)
    with running_server(tiny_model, config) as server:
        with (
            Client(server.address, retries=1) as client,
            pytest.raises(RequestError, match="SERVER: Received message larger .*; send a smaller") as sent,
        ):
            client.segment(large)
        with Client(server.address, max_message_bytes=2000) as client:
            with pytest.raises(RequestError, match="CLIENT: Received message larger .*; send a smaller") as received:
                client.segment(small, encoding=Encoding.RAW, heatmaps=["red"], confidence=True)
            assert client.segment(small).class_map.shape == (20, 30)
    for caught in (sent, received):
        assert not isinstance(caught.value, ServerOverloadedError)
        assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_a_call_that_ends_with_its_server_is_not_told_as_a_server_that_is_not_there(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(segmenter, tiny_model), ServerConfig(grace_s=0.3)) as server,
        Client(server.address, retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.segment, IMAGE)
        assert segmenter.begun.acquire(timeout=60)
        server.begin_stop()
        error = asked.exception(60)
        segmenter.gate.set()
    assert isinstance(error, ServerUnavailableError)
    assert str(error).startswith(f"server {server.address} was stopped before it had answered (")


def refusing(refusal: Refusal) -> Callable[[pb.SegmentRequest, grpc.ServicerContext], pb.SegmentResponse]:
    """Return what answers each request with an error, as `serving.statuses.abort` does."""

    def answer(request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        del request
        context.set_trailing_metadata(refusal.trailing_metadata())
        context.abort(refusal.code, refusal.message)
        raise AssertionError

    return answer


def test_what_a_server_that_stops_says_is_told_as_it_is_whatever_the_words() -> None:
    refusal = refuse(StoppingError("the server is stopping; have another open it"), "the request")
    with server_that_answers(refusing(refusal)) as address, Client(address, retries=0) as client:
        with pytest.raises(ServerUnavailableError) as caught:
            client.segment(PIXEL)
        assert str(caught.value) == f"server {address}: the server is stopping; have another open it"


def test_what_is_unavailable_for_a_proxy_is_not_taken_for_a_servers_word() -> None:
    def answer(request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        del request
        context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream; ask again")
        raise AssertionError

    with (
        server_that_answers(answer) as address,
        Client(address, retries=0) as client,
        pytest.raises(ServerUnavailableError, match=r"no server answers at .* \(no healthy upstream; ask again\)"),
    ):
        client.segment(PIXEL)


def test_a_killed_server_is_told_and_a_new_one_found(tiny_model: Path) -> None:
    port = free_port()
    with Client(f"127.0.0.1:{port}", retries=0) as client:
        with server_process(tiny_model, port) as server:
            before = client.segment(IMAGE)
            server.kill()
            with pytest.raises(ServerUnavailableError, match=f"no server answers at 127.0.0.1:{port}"):
                client.segment(IMAGE)
        with server_process(tiny_model, port):
            client.wait_until_ready(60)
            after = client.segment(IMAGE)
    np.testing.assert_array_equal(before.class_map, after.class_map)


def test_requests_under_way_when_the_server_is_killed_are_told_at_once(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=2000)
    with (
        server_process(path, free_port()) as server,
        Client(server.address, retries=0, timeout_s=60) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        under_way = [pool.submit(client.segment, PIXEL) for _ in range(16)]  # seconds of work
        time.sleep(0.3)
        server.kill()
        errors = {type(request.exception(30)) for request in under_way}
    assert errors - {type(None)} == {ServerUnavailableError}


def test_retries_ride_through_a_restart(tiny_model: Path) -> None:
    expected = fcnseg.load(tiny_model, "cpu", threads=1).segment(IMAGE).class_map
    port = free_port()
    done = threading.Event()

    def work(client: Client) -> int:
        count = 0
        while not done.is_set() or count == 0:
            np.testing.assert_array_equal(client.segment(IMAGE).class_map, expected)
            count += 1
        return count

    with Client(f"127.0.0.1:{port}", retries=4, timeout_s=60) as client, ThreadPoolExecutor(3) as pool:
        with server_process(tiny_model, port) as server:
            workers = [pool.submit(work, client) for _ in range(3)]
            time.sleep(0.5)
            server.kill()
        # In this process, where it is there at once: the retries end after 8 s.
        with running_server(tiny_model, ServerConfig(port=port)):
            time.sleep(0.5)
            done.set()
            assert all(worker.result(60) > 0 for worker in workers)


def test_a_killed_server_ends_a_stream(tiny_model: Path) -> None:
    port = free_port()
    with Client(f"127.0.0.1:{port}") as client:
        with server_process(tiny_model, port) as server:
            stream = client.segment_stream(itertools.repeat(IMAGE), in_flight=2)
            for _ in range(3):
                next(stream).result()
            server.kill()
            with pytest.raises(ServerUnavailableError):
                list(stream)
        with server_process(tiny_model, port):
            client.wait_until_ready(60)
            assert [item.id for item in client.segment_stream([IMAGE, IMAGE])] == [0, 1]
