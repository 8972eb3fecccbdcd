"""What a running server tells OpenTelemetry of real clients' requests."""

import io
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fcnseg.async_client import AsyncClient
from fcnseg.client import Client
from fcnseg.errors import InvalidRequestError, RequestError, UsageError
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.logs import JsonFormatter
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.server import ServerConfig
from serving.spans import CallTracer, open_tracer
from tests.running_server import RunningServer, running_server
from tests.server_process import free_port, server_process
from tests.tiny_model import write_tiny_model
from tests.untimed import untimed
from tests.waiting import wait_until

IMAGE = np.full((4, 6, 3), (255, 0, 0), np.uint8)
RED = pb.SegmentRequest(raw=pb.RawImage(height=4, width=6, rgb=IMAGE.tobytes()))
STAGES = ["decode", "queue", "infer", "encode"]
SEGMENT = "fcnseg.v1.SegmentationService/Segment"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
CLOCKS_APART_NS = 2_000_000  # the wall clock may have been set since the process began


@dataclass(frozen=True)
class Traced:
    """A running server, and the spans that it has ended."""

    server: RunningServer
    exporter: InMemorySpanExporter

    def call(self, method: str = SEGMENT) -> ReadableSpan:
        """Return the one span of a method when the call's end has been told."""
        wait_until(lambda: any(span.name == method for span in self.exporter.get_finished_spans()))
        (span,) = [span for span in self.exporter.get_finished_spans() if span.name == method]
        return span

    def under(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Return the spans under one, as they began."""
        spans = [span for span in self.exporter.get_finished_spans() if span.parent == parent.context]
        return sorted(spans, key=lambda span: span.start_time)


@contextmanager
def traced_server(model: Path) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with running_server(model, ServerConfig(tracer=CallTracer(provider))) as server:
        yield Traced(server, exporter)


@pytest.fixture
def traced(tiny_model: Path) -> Iterator[Traced]:
    with traced_server(tiny_model) as server:
        yield server


@pytest.fixture
def program() -> Iterator[trace.Tracer]:
    """A program that makes spans of its own."""
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider.get_tracer("program")
    provider.shutdown()


@contextmanager
def segmentation_stub(server: RunningServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated


def nests(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    return outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time


def test_a_call_is_a_span_under_its_clients_and_its_stages_are_under_it(traced: Traced, program: trace.Tracer) -> None:
    with Client(traced.server.address) as client, program.start_as_current_span("ask") as ask:
        began = time.time_ns()
        client.segment(IMAGE)
    call = traced.call()
    assert call.kind is SpanKind.SERVER
    assert call.context.trace_id == ask.get_span_context().trace_id
    assert call.parent.span_id == ask.get_span_context().span_id
    assert call.parent.is_remote
    assert began - CLOCKS_APART_NS <= call.start_time < call.end_time
    attributes = dict(call.attributes)
    assert attributes.pop("fcnseg.request_id")
    assert attributes == {
        "rpc.system": "grpc",
        "rpc.service": "fcnseg.v1.SegmentationService",
        "rpc.method": "Segment",
        "rpc.grpc.status_code": 0,
        "fcnseg.model.name": "tiny",
        "fcnseg.model.version": "1",
        "fcnseg.image.height": 4,
        "fcnseg.image.width": 6,
    }
    assert call.status.status_code is StatusCode.UNSET
    stages = traced.under(call)
    assert [stage.name for stage in stages] == STAGES
    assert all(nests(stage, call) for stage in stages)
    assert all(a.end_time <= b.start_time for a, b in pairwise(stages))
    assert dict(stages[2].attributes) == {"fcnseg.batch.size": 1}
    assert len(traced.exporter.get_finished_spans()) == 5


def test_stages_last_as_long_as_the_answer_says(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "slow.onnx", work_rounds=300)
    with traced_server(path) as traced, Client(traced.server.address) as client:
        told = client.segment(IMAGE).timings
        spans = traced.under(traced.call())
    lasted = [(span.end_time - span.start_time) / 1e6 for span in spans]
    assert lasted == pytest.approx([told.decode_ms, told.queue_ms, told.infer_ms, told.encode_ms], abs=0.01)
    assert lasted[2] > 1


async def test_the_async_client_sends_its_span_too(traced: Traced, program: trace.Tracer) -> None:
    async with AsyncClient(traced.server.address) as client:
        with program.start_as_current_span("ask") as ask:
            await client.segment(IMAGE)
            items = [item async for item in client.segment_stream([IMAGE])]
    assert [item.error for item in items] == [None]
    for method in (SEGMENT, "fcnseg.v1.SegmentationService/SegmentStream"):
        assert traced.call(method).parent.span_id == ask.get_span_context().span_id


def test_any_client_names_its_trace_by_metadata(traced: Traced) -> None:
    with segmentation_stub(traced.server) as stub:
        stub.Segment(RED, timeout=10, metadata=[("traceparent", SAMPLED), ("tracestate", "vendor=7")])
    call = traced.call()
    assert trace.format_trace_id(call.context.trace_id) == TRACE
    assert trace.format_span_id(call.parent.span_id) == PARENT
    assert call.context.trace_state.to_header() == "vendor=7"


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01"])
def test_a_call_without_a_valid_trace_begins_one(traced: Traced, given: str) -> None:
    with segmentation_stub(traced.server) as stub:
        stub.Segment(RED, timeout=10, metadata=[("traceparent", given)] if given else None)
    call = traced.call()
    assert call.parent is None
    assert trace.format_trace_id(call.context.trace_id) != TRACE


def test_a_trace_that_its_client_does_not_sample_has_no_spans_here(traced: Traced) -> None:
    with segmentation_stub(traced.server) as stub:
        stub.Segment(RED, timeout=10, metadata=[("traceparent", UNSAMPLED)])
        answers = stub.SegmentStream(
            iter([pb.SegmentStreamRequest(id="a", request=RED)]), timeout=10, metadata=[("traceparent", UNSAMPLED)]
        )
        assert [answer.HasField("response") for answer in answers] == [True]
        stub.ListModels(pb.ListModelsRequest(), timeout=10)
    traced.call("fcnseg.v1.SegmentationService/ListModels")
    assert len(traced.exporter.get_finished_spans()) == 1


def test_what_probes_ask_is_not_traced(traced: Traced) -> None:
    with grpc.insecure_channel(traced.server.address) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        SegmentationServiceStub(channel).Segment(RED, timeout=10)  # type: ignore[no-untyped-call] # generated
    traced.call()
    assert {span.name for span in traced.exporter.get_finished_spans()} == {SEGMENT, *STAGES}


def test_a_clients_mistake_has_its_code_and_is_no_error_of_the_server(traced: Traced) -> None:
    with Client(traced.server.address) as client, pytest.raises(InvalidRequestError):
        client.segment(b"no image")
    call = traced.call()
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert call.attributes["fcnseg.model.name"] == "tiny"
    assert call.status.status_code is StatusCode.UNSET
    assert traced.under(call) == []


def test_a_fault_of_the_server_is_an_error_that_tells_what_the_client_was_told(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "broken.onnx", fails_on_magenta=True)
    magenta = np.full((4, 4, 3), (255, 0, 255), np.uint8)
    with traced_server(path) as traced, Client(traced.server.address, retries=0) as client:
        with pytest.raises(RequestError, match="internal error"):
            client.segment(magenta)
        call = traced.call()
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert call.attributes["error.type"] == "INTERNAL"
    assert call.status.status_code is StatusCode.ERROR
    assert call.status.description == "internal error; the server's log tells more"
    assert not call.events


def test_each_image_of_a_stream_is_a_span_under_the_streams(traced: Traced) -> None:
    images = [("first", IMAGE), ("broken", b"no image"), ("last", IMAGE[:2])]
    with Client(traced.server.address) as client:
        assert [item.error is None for item in client.segment_stream(images)] == [True, False, True]
    call = traced.call("fcnseg.v1.SegmentationService/SegmentStream")
    spans = {span.attributes["fcnseg.image.id"]: span for span in traced.under(call)}
    assert set(spans) == {"first", "broken", "last"}
    assert all(span.name == "image" and nests(span, call) for span in spans.values())
    for name, height in (("first", 4), ("last", 2)):
        stages = traced.under(spans[name])
        assert [stage.name for stage in stages] == STAGES
        assert all(nests(stage, spans[name]) for stage in stages)
        assert spans[name].attributes["fcnseg.image.height"] == height
    assert traced.under(spans["broken"]) == []
    assert spans["broken"].attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert call.attributes["rpc.grpc.status_code"] == 0


def test_an_id_that_is_too_long_is_cut(traced: Traced) -> None:
    with segmentation_stub(traced.server) as stub:
        request = pb.SegmentStreamRequest(id="x" * 1_000_000, request=RED)
        assert [answer.failure.field for answer in stub.SegmentStream(iter([request]), timeout=10)] == ["id"]
    (image,) = traced.under(traced.call("fcnseg.v1.SegmentationService/SegmentStream"))
    assert image.attributes["fcnseg.image.id"] == "x" * 256


def test_an_image_that_is_decoded_when_its_call_was_cancelled_raises_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Work in a thread goes on, and a warning would be told as that of spans that are lost."""
    monkeypatch.setattr(logging.getLogger("opentelemetry"), "propagate", True)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    call = CallTracer(provider).begin(SEGMENT, "an id", (), time.monotonic())
    assert call is not None
    image = call.begin_image("")
    image.decoded(4, 6)
    image.end()
    image.decoded(8, 12)
    provider.shutdown()
    assert not caplog.records
    assert [span.attributes["fcnseg.image.height"] for span in exporter.get_finished_spans()] == [4]


def infer_request(images: int, request_id: str = "") -> oip.ModelInferRequest:
    shape = (images, *IMAGE.shape)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=shape)
    return oip.ModelInferRequest(
        model_name="tiny", id=request_id, inputs=[tensor], raw_input_contents=[IMAGE.tobytes() * images]
    )


def test_images_of_the_open_inference_protocol_are_traced_alike(traced: Traced) -> None:
    with grpc.insecure_channel(traced.server.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        stub.ModelInfer(infer_request(2), timeout=10)
        requests = [infer_request(1, "a"), infer_request(1, "b")]
        assert len(list(stub.ModelStreamInfer(iter(requests), timeout=10))) == 2
    several = traced.under(traced.call("inference.GRPCInferenceService/ModelInfer"))
    stream = traced.under(traced.call("inference.GRPCInferenceService/ModelStreamInfer"))
    assert [span.name for span in (*several, *stream)] == ["image"] * 4
    assert {span.attributes["fcnseg.image.id"] for span in stream} == {"a", "b"}
    assert all([stage.name for stage in traced.under(span)] == STAGES for span in (*several, *stream))


def test_lines_of_the_log_have_the_traces_id(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "broken.onnx", fails_on_magenta=True)
    magenta = pb.SegmentRequest(raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 255)) * 16))
    logger, handler = logging.getLogger("serving"), logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with traced_server(path) as traced, segmentation_stub(traced.server) as stub:
            for parent in (SAMPLED, UNSAMPLED):
                with pytest.raises(grpc.RpcError):
                    stub.Segment(magenta, timeout=10, metadata=[("traceparent", parent)])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    lines = [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    assert [line["message"] for line in lines[1::2]] == ["call ended"] * 2
    assert [line.get("trace_id") for line in lines] == [TRACE] * 4


def test_opentelemetry_is_imported_only_where_it_is_asked_for(tiny_model: Path) -> None:
    script = (
        "import sys, fcnseg, serving.server, serving.command, numpy as np\n"
        "from tests.running_server import running_server\nfrom pathlib import Path\n"
        f"with running_server(Path({str(tiny_model)!r})) as server, fcnseg.Client(server.address) as client:\n"
        "    client.segment(np.zeros((4, 4, 3), np.uint8))\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=180)


# With a receiver


@dataclass
class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans by OTLP over gRPC."""

    requests: list[trace_service_pb2.ExportTraceServiceRequest] = field(default_factory=list)

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the contract's name
        del context
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_the_command_sends_its_spans_to_a_receiver_the_last_at_its_end(tiny_model: Path) -> None:
    receiver = Receiver()
    collector = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",  # nothing leaves before the end
    }
    try:
        with server_process(tiny_model, free_port(), environment=environment) as server:
            with Client(server.address) as client:
                client.segment(IMAGE)
            assert receiver.requests == []
            server.begin_stop()
            assert server.wait_stopped() == 0
    finally:
        collector.stop(None).wait()
    (sent,) = [spans for request in receiver.requests for spans in request.resource_spans]
    resource = {attribute.key: attribute.value.string_value for attribute in sent.resource.attributes}
    assert resource["service.name"] == "fcnseg"
    assert resource["deployment.environment.name"] == "test"
    assert [span.name for scope in sent.scope_spans for span in scope.spans] == [*STAGES, SEGMENT]


def test_a_receiver_that_is_not_there_costs_one_line_and_no_request(tiny_model: Path, tmp_path: Path) -> None:
    log, environment = tmp_path / "log", {"OTEL_BSP_SCHEDULE_DELAY": "50"}
    endpoint = f"http://127.0.0.1:{free_port()}"
    options = ("--otlp-endpoint", endpoint, "--grace", "1", "--log-level", "warning")
    with server_process(tiny_model, free_port(), *options, environment=environment, log=log) as server:
        with Client(server.address, retries=0) as client:
            for _ in range(20):
                client.segment(IMAGE)
            wait_until(lambda: "spans may be lost" in log.read_text())
            for _ in range(20):
                client.segment(IMAGE)
        server.begin_stop()
        assert server.wait_stopped() == 0
    (line,) = log.read_text().splitlines()
    assert untimed(line).startswith("WARNING serving.spans: spans may be lost, told once in 5 minutes: ")
    assert endpoint.removeprefix("http://") in line


@pytest.mark.slow
def test_a_receiver_that_never_answers_does_not_hold_up_requests_or_the_end(tiny_model: Path, tmp_path: Path) -> None:
    environment = {
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
    }
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = ("--otlp-endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}", "--grace", "1")
        log = tmp_path / "log"
        with server_process(tiny_model, free_port(), *options, environment=environment, log=log) as server:
            with Client(server.address, retries=0, timeout_s=5) as client:
                for _ in range(20):
                    client.segment(IMAGE)
            began = time.monotonic()
            server.begin_stop()
            assert server.wait_stopped() == 0
            assert time.monotonic() - began < 8
    assert log.read_text().count("spans may be lost") == 1


@pytest.mark.parametrize(
    ("endpoint", "environment", "words"),
    [
        ("127.0.0.1:4317", {}, "http://HOST:PORT"),
        ("http://", {}, "http://HOST:PORT"),
        ("http://host:port", {}, "http://HOST:PORT"),
        ("ftp://host:4317", {}, "http://HOST:PORT"),
        ("http://host:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "over grpc"),
        ("http://host:4317", {"OTEL_TRACES_EXPORTER": "zipkin"}, "by otlp"),
    ],
)
def test_what_cannot_be_sent_to_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words) as caught:
        open_tracer(endpoint)
    assert "\n" not in str(caught.value)


def test_the_environment_may_say_that_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert open_tracer("http://127.0.0.1:4317") is None
