"""What a running server's metrics say of what real clients asked."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fcnseg.client import Client
from fcnseg.errors import RequestError
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.batcher import BatchingConfig
from serving.image_sources import RawSource
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.pipeline import Pipeline
from serving.registry import ModelRegistry
from serving.security import Security
from serving.server import ServerConfig
from serving.statistics import Outcome
from serving.tokens import Tokens
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.scraping import Scrape, scrape
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

HTTP = ServerConfig(http_port=0)
PROVED = replace(CPU_CONFIG, options=replace(CPU_CONFIG.options, prove=True))
RED = pb.SegmentRequest(
    raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 0)) * 16), encoding=pb.CLASS_MAP_ENCODING_RAW
)
SEGMENT = "fcnseg.v1.SegmentationService/Segment"
OUTCOMES = ("answered", "invalid", "refused", "cancelled", "failed")
REASONS = ("queue_full", "memory", "deadline", "late", "stopping")


@pytest.fixture
def gated(tiny_model: Path) -> GatedSegmenter:
    return GatedSegmenter(tiny_model, PROVED.options)


@contextmanager
def asking(server: RunningServer) -> Iterator[tuple[Any, ThreadPoolExecutor]]:
    """Give a stub without retries, and threads to ask in."""
    with (
        grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel,
        ThreadPoolExecutor(8) as threads,
    ):
        yield SegmentationServiceStub(channel), threads  # type: ignore[no-untyped-call] # generated


def hold(stub: Any, threads: ThreadPoolExecutor, gated: GatedSegmenter) -> Future[pb.SegmentResponse]:
    """Ask for an image whose run waits for the gate."""
    answer: Future[pb.SegmentResponse] = threads.submit(stub.Segment, RED, timeout=20)
    assert gated.begun.acquire(timeout=60)
    return answer


def refuse(stub: Any, code: grpc.StatusCode, request: pb.SegmentRequest = RED, timeout: float = 20) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request, timeout=timeout)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is code


def until(server: RunningServer, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a metric has a value: what a client sees may be counted a moment later."""
    seen = scrape(server)

    def has_value() -> bool:
        nonlocal seen
        seen = scrape(server)
        return seen.value(name, **labels) == value

    wait_until(has_value, tell=lambda: f"{name} {labels} is {seen.value(name, **labels)}, not {value}")
    return seen


def outcomes(seen: Scrape) -> dict[str, float]:
    counts = {outcome: seen.value("fcnseg_images_total", outcome=outcome) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


def refusals(seen: Scrape) -> dict[str, float]:
    counts = {reason: seen.value("fcnseg_refusals_total", reason=reason) for reason in REASONS}
    return {reason: count for reason, count in counts.items() if count}


def test_calls_are_counted_by_method_and_code_with_their_bytes(tiny_model: Path) -> None:
    with running_server(tiny_model, HTTP) as server, asking(server) as (stub, _):
        response = stub.Segment(RED, timeout=10)
        stub.ListModels(pb.ListModelsRequest(), timeout=10)
        refuse(stub, grpc.StatusCode.INVALID_ARGUMENT, pb.SegmentRequest(encoded=b"no image"))
        refuse(stub, grpc.StatusCode.NOT_FOUND, pb.SegmentRequest(model_name="nobody"))
        answers = list(stub.SegmentStream(iter([pb.SegmentStreamRequest(request=RED)] * 3), timeout=10))
        with grpc.insecure_channel(server.address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        seen = until(server, "fcnseg_requests_total", 6)
    ended = {
        (d["method"], d["code"])
        for d in seen.labels("fcnseg_requests_total")
        if seen.value("fcnseg_requests_total", **d)
    }
    stream = "fcnseg.v1.SegmentationService/SegmentStream"
    assert ended == {
        (SEGMENT, "OK"),
        (SEGMENT, "INVALID_ARGUMENT"),
        (SEGMENT, "NOT_FOUND"),
        (stream, "OK"),
        ("fcnseg.v1.SegmentationService/ListModels", "OK"),
        ("grpc.health.v1.Health/Check", "OK"),
    }
    invalid = [pb.SegmentRequest(encoded=b"no image"), pb.SegmentRequest(model_name="nobody")]
    received = sum(request.ByteSize() for request in (RED, *invalid))
    assert seen.value("fcnseg_request_bytes_total", method=SEGMENT) == received
    assert seen.value("fcnseg_response_bytes_total", method=SEGMENT) == response.ByteSize()
    item = pb.SegmentStreamRequest(request=RED)
    assert seen.value("fcnseg_request_bytes_total", method=stream) == 3 * item.ByteSize()
    assert seen.value("fcnseg_response_bytes_total", method=stream) == sum(a.ByteSize() for a in answers)
    assert outcomes(seen) == {"answered": 4, "invalid": 1}


def test_answers_and_faults_of_every_method_are_counted_from_0(tmp_path: Path) -> None:
    registry = ModelRegistry([write_tiny_model(tmp_path / "moody.onnx", fails_on_magenta=True)], CPU_CONFIG)
    magenta = pb.SegmentRequest(raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 255)) * 16))
    with running_server(registry, HTTP) as server, asking(server) as (stub, _):
        before = scrape(server)
        refuse(stub, grpc.StatusCode.INTERNAL, magenta)
        after = until(server, "fcnseg_requests_total", 1)
    services = [file.services_by_name.values() for file in (pb.DESCRIPTOR, oip.DESCRIPTOR, health_pb2.DESCRIPTOR)]
    methods = {f"{service.full_name}/{m.name}" for there in services for service in there for m in service.methods}
    zeros = {(d["method"], d["code"]) for d in before.labels("fcnseg_requests_total")}
    assert {(method, code) for method in methods for code in ("OK", "INTERNAL", "UNKNOWN")} <= zeros
    assert before.value("fcnseg_requests_total") == 0
    assert after.labels("fcnseg_requests_total") == before.labels("fcnseg_requests_total")
    assert after.value("fcnseg_requests_total", method=SEGMENT, code="INTERNAL") == 1


def test_unknown_methods_models_and_ids_make_no_series(tiny_model: Path) -> None:
    with running_server(tiny_model, HTTP) as server, grpc.insecure_channel(server.address) as channel:
        stub = SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        stub.Segment(RED, timeout=10)
        refuse(stub, grpc.StatusCode.NOT_FOUND, pb.SegmentRequest(model_name="nobody"))
        before = until(server, "fcnseg_requests_total", 2)
        for i in range(20):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/made.up.Service/Method{i}")(b"", timeout=10)  # type: ignore[arg-type]
            refuse(stub, grpc.StatusCode.NOT_FOUND, pb.SegmentRequest(model_name=f"nobody {i}", model_version=str(i)))
            stub.Segment(RED, timeout=10, metadata=[("x-request-id", f"id-{i}")])
        after = until(server, "fcnseg_requests_total", 62)
    assert after.samples.keys() - before.samples.keys() == {
        ("fcnseg_requests_total", (("code", "UNIMPLEMENTED"), ("method", "other")))
    }
    assert after.value("fcnseg_requests_total", method="other") == 20


def test_strangers_make_no_series_by_methods_that_they_make_up(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text(f"one {'0' * 64}\n")
    config = replace(HTTP, security=Security(tokens=Tokens(tmp_path / "tokens.txt")))
    with running_server(tiny_model, config) as server, grpc.insecure_channel(server.address) as channel:
        for name in ("made.up.Service/Method", "other/other", SEGMENT):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{name}")(b"", timeout=10)  # type: ignore[arg-type]
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        seen = until(server, "fcnseg_requests_total", 3)
    assert seen.value("fcnseg_requests_total", method="other") == 2
    assert seen.value("fcnseg_requests_total", method=SEGMENT) == 1


def test_a_full_queue_a_late_answer_and_a_deadline_that_cannot_be_met(gated: GatedSegmenter, tiny_model: Path) -> None:
    config = replace(PROVED, batching=BatchingConfig(max_batch=1, max_queue=2))
    with running_server(registry_of(gated, tiny_model, config), HTTP) as server, asking(server) as (stub, threads):
        held = hold(stub, threads, gated)
        seen = until(server, "fcnseg_queue_images", 1)
        assert seen.value("fcnseg_queue_limit_images") == 2
        refuse(stub, grpc.StatusCode.DEADLINE_EXCEEDED, timeout=2)
        assert refusals(until(server, "fcnseg_refusals_total", 1)) == {"late": 1}
        waiting = threads.submit(stub.Segment, RED, timeout=20)
        until(server, "fcnseg_queue_images", 2)
        refuse(stub, grpc.StatusCode.RESOURCE_EXHAUSTED)
        gated.gate.set()
        held.result(60), waiting.result(60)
        gated.gate.clear()  # by now the model is known to take two seconds
        while gated.begun.acquire(blocking=False):
            pass
        held = hold(stub, threads, gated)
        refuse(stub, grpc.StatusCode.RESOURCE_EXHAUSTED, timeout=2)
        gated.gate.set()
        held.result(60)
        seen = until(server, "fcnseg_requests_total", 6)
    assert refusals(seen) == {"queue_full": 1, "late": 1, "deadline": 1}
    assert outcomes(seen) == {"answered": 3, "refused": 3}
    assert seen.value("fcnseg_requests_total", code="DEADLINE_EXCEEDED") == 1
    assert seen.value("fcnseg_queue_images") == 0


def test_memory_that_is_held_and_running(gated: GatedSegmenter, tiny_model: Path) -> None:
    config = replace(PROVED, max_memory=2 * 8_000_000)
    large = pb.SegmentRequest(raw=pb.RawImage(height=300, width=300, rgb=bytes(270_000)))
    with running_server(registry_of(gated, tiny_model, config), HTTP) as server, asking(server) as (stub, threads):
        before = scrape(server)
        futures = [threads.submit(stub.Segment, large, timeout=20) for _ in range(8)]  # six or seven fit
        assert gated.begun.acquire(timeout=60)
        wait_until(lambda: scrape(server).value("fcnseg_refusals_total", reason="memory") > 0)
        during = scrape(server)
        gated.gate.set()
        refused = sum(future.exception(60) is not None for future in futures)
        after = until(server, "fcnseg_memory_bytes", 0)
    for use in ("held", "running"):
        assert before.value("fcnseg_memory_bytes", use=use) == 0
        assert 90_000 < during.value("fcnseg_memory_bytes", use=use) <= 8_000_000
        assert during.value("fcnseg_memory_limit_bytes", use=use) == 8_000_000
    assert refusals(after) == {"memory": refused}


def test_a_client_that_goes_away_a_failing_run_and_a_model_that_closes(tmp_path: Path) -> None:
    registry = ModelRegistry([write_tiny_model(tmp_path / "moody.onnx", fails_on_magenta=True)], CPU_CONFIG)
    magenta = pb.SegmentRequest(raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 255)) * 16))
    with running_server(registry, HTTP) as server, asking(server) as (stub, _):
        refuse(stub, grpc.StatusCode.INTERNAL, magenta)
        registry.close()
        refuse(stub, grpc.StatusCode.UNAVAILABLE)
        seen = until(server, "fcnseg_requests_total", 2)
    assert outcomes(seen) == {"refused": 1, "failed": 1}
    assert refusals(seen) == {"stopping": 1}


def test_a_cancelled_call_is_no_refusal(gated: GatedSegmenter, tiny_model: Path) -> None:
    with running_server(registry_of(gated, tiny_model), HTTP) as server, asking(server) as (stub, threads):
        held = hold(stub, threads, gated)
        leaving = stub.Segment.future(RED, timeout=20)
        until(server, "fcnseg_queue_images", 2)
        leaving.cancel()
        seen = until(server, "fcnseg_requests_total", 1)
        gated.gate.set()
        held.result(60)
    assert (outcomes(seen), refusals(seen)) == ({"cancelled": 1}, {})
    assert seen.value("fcnseg_requests_total", code="CANCELLED") == 1


async def test_images_that_are_cancelled_before_they_are_let_in_together_are_counted(tiny_model: Path) -> None:
    registry, pipeline = ModelRegistry([tiny_model], CPU_CONFIG), Pipeline(ImageLimits())
    (model,) = registry.models
    entering = asyncio.create_task(pipeline.enter_together(model, [RawSource(bytes(48), 4, 4)] * 2, ExitStack()))
    await asyncio.sleep(0)
    entering.cancel()
    await asyncio.wait([entering])
    pipeline.close()
    registry.close()
    assert model.statistics.outcomes == {Outcome.CANCELLED: 2}


def test_a_stream_that_waits_for_room_is_not_refused(gated: GatedSegmenter, tiny_model: Path) -> None:
    config = replace(PROVED, batching=BatchingConfig(max_batch=1, max_queue=1))
    with running_server(registry_of(gated, tiny_model, config), HTTP) as server, asking(server) as (stub, _):
        answers = stub.SegmentStream(iter([pb.SegmentStreamRequest(request=RED)] * 6), timeout=20)
        assert gated.begun.acquire(timeout=60)
        time.sleep(0.3)
        gated.gate.set()
        assert len(list(answers)) == 6
        seen = until(server, "fcnseg_requests_total", 1)
    assert (outcomes(seen), refusals(seen)) == ({"answered": 6}, {})


def test_stages_and_batches_are_those_that_clients_are_told(gated: GatedSegmenter, tiny_model: Path) -> None:
    config = replace(PROVED, batching=BatchingConfig(max_batch=4))
    with running_server(registry_of(gated, tiny_model, config), HTTP) as server, asking(server) as (stub, threads):
        futures = [hold(stub, threads, gated)]
        futures += [threads.submit(stub.Segment, RED, timeout=20) for _ in range(4)]
        until(server, "fcnseg_queue_images", 5)
        gated.gate.set()
        timings = [future.result(60).timings for future in futures]
        seen = until(server, "fcnseg_images_total", 5, outcome="answered")
    told = {s: sum(getattr(t, f"{s}_ms") for t in timings) / 1000 for s in ("decode", "queue", "infer", "encode")}
    for stage, seconds in (told | {"total": sum(told.values())}).items():
        assert seen.value("fcnseg_stage_seconds_count", stage=stage) == 5
        assert seen.value("fcnseg_stage_seconds_sum", stage=stage) == pytest.approx(seconds, rel=1e-4)
        assert seen.value("fcnseg_stage_seconds_bucket", stage=stage, le="+Inf") == 5
        counts = [seen.value("fcnseg_stage_seconds_bucket", stage=stage, le=le) for le in ("0.001", "0.1", "30.0")]
        assert counts == sorted(counts)
    assert seen.value("fcnseg_batch_images_count") == 2
    assert seen.value("fcnseg_batch_images_sum") == 5
    buckets = {le: seen.value("fcnseg_batch_images_bucket", le=le) for le in ("1.0", "2.0", "4.0", "+Inf")}
    assert buckets == {"1.0": 1, "2.0": 1, "4.0": 2, "+Inf": 2}


def test_class_shares_and_confidence_tell_what_was_answered(tiny_model: Path) -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :12, 0] = image[:, 12:, 1] = 255
    with running_server(tiny_model, HTTP) as server, Client(server.address) as client:
        client.segment(image)
        client.segment(image, encoding=Encoding.RAW)
        plain = scrape(server)
        answer = client.segment(np.full((4, 4, 3), (0, 0, 255), np.uint8), confidence=True)
        seen = scrape(server)
    assert {
        d["class"]: plain.value("fcnseg_class_share_total", **d) for d in plain.labels("fcnseg_class_share_total")
    } == {
        "red": 1.5,
        "green": 0.5,
    }
    assert plain.value("fcnseg_confidence_count") == 0
    assert seen.value("fcnseg_class_share_total", **{"class": "blue"}) == 1
    assert answer.confidence is not None
    assert seen.value("fcnseg_confidence_count") == 1
    assert seen.value("fcnseg_confidence_sum") == pytest.approx(answer.confidence.mean() / 255)


def test_the_inference_service_is_counted_like_any_other(tiny_model: Path) -> None:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(2 * 4 * 4 * 3)])
    request.inputs.add(name="image", datatype="UINT8", shape=(2, 4, 4, 3))
    with running_server(tiny_model, HTTP) as server, grpc.insecure_channel(server.address) as channel:
        GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)  # type: ignore[no-untyped-call]
        seen = until(server, "fcnseg_requests_total", 1, method="inference.GRPCInferenceService/ModelInfer", code="OK")
    assert outcomes(seen) == {"answered": 2}
    assert seen.value("fcnseg_confidence_count") == 2  # all outputs were asked for


def test_models_are_there_while_they_are_open(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_tiny_model(tmp_path / name / "1" / "model.onnx")
    registry = ModelRegistry([tmp_path], replace(CPU_CONFIG, warm_sizes=((8, 8),)))
    with running_server(registry, HTTP) as server, Client(server.address) as client:
        before = scrape(server)
        for size in (8, 9, 9, 13):
            client.segment(np.zeros((size, size, 3), np.uint8), model="cat")
        warm = scrape(server)
        registry.unload("cat")
        after = scrape(server)
        with pytest.raises(RequestError):
            client.segment(np.zeros((8, 8, 3), np.uint8), model="cat")
    assert before.labels("fcnseg_model_info")[0] == {
        "model": "cat",
        "version": "1",
        "architecture": "tiny",
        "variant": "heatmap",
        "device": "cpu",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
    }
    assert before.value("fcnseg_cold_shapes_total", model="cat") == 0
    assert warm.value("fcnseg_cold_shapes_total", model="cat") == 2
    assert [labels["model"] for labels in after.labels("fcnseg_model_info")] == ["dog"]


def test_the_process_is_told_of(tiny_model: Path) -> None:
    with running_server(tiny_model, HTTP) as server:
        seen = scrape(server)
    assert seen.value("process_resident_memory_bytes") > 10_000_000
    assert seen.value("process_cpu_seconds_total") > 0


def test_scraping_a_busy_server_disturbs_neither(tiny_model: Path) -> None:
    with running_server(tiny_model, HTTP) as server, asking(server) as (stub, threads):
        futures = [threads.submit(stub.Segment, RED, timeout=20) for _ in range(200)]
        answered = [0.0]
        while not all(future.done() for future in futures):
            answered.append(scrape(server).value("fcnseg_images_total", outcome="answered"))
        assert all(future.result().class_map.data == bytes(16) for future in futures)
        seen = scrape(server)
    assert answered == sorted(answered)
    assert seen.value("fcnseg_stage_seconds_bucket", stage="total", le="+Inf") == 200
