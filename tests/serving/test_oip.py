"""The inference service, asked through its own stubs: what Triton's client leaves out."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import zstandard
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

import fcnseg
from fcnseg import masks
from fcnseg.v1 import segmentation_pb2
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.batcher import BatchingConfig
from serving.image_sources import COPIES
from serving.oip import inference_pb2 as pb
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.oip.servicer import SERVICE
from serving.registry import ModelRegistry
from serving.served_model import ModelConfig
from serving.server import ServerConfig
from serving.statistics import Outcome
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, running_server
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_until

PIXELS = np.random.default_rng(5).integers(0, 256, (3, 10, 14, 3), np.uint8)
DTYPES = {"UINT8": "u1", "UINT16": "<u2", "FP32": "<f4"}


@pytest.fixture(scope="module")
def stub(tiny_model: Path) -> Iterator[Any]:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def png(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def ask(pixels: NDArray[np.uint8] = PIXELS, *outputs: str, **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[pixels.tobytes()], **fields)
    request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def read(response: pb.ModelInferResponse, name: str) -> NDArray[Any]:
    for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name == name:
            return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(tensor.shape)
    raise AssertionError(f"no output {name}")


def expect(tiny_model: Path, pixels: NDArray[np.uint8] = PIXELS) -> NDArray[np.uint8]:
    segmenter = fcnseg.load(tiny_model, "cpu")
    return np.stack([segmenter.segment(image).class_map for image in pixels])


def test_typed_pixels_are_answered_as_raw_ones(stub: Any, tiny_model: Path) -> None:
    request = pb.ModelInferRequest(model_name="tiny")
    request.inputs.add(
        name="image",
        datatype="UINT8",
        shape=PIXELS.shape,
        contents=pb.InferTensorContents(uint_contents=PIXELS.ravel().tolist()),
    )
    response = stub.ModelInfer(request)
    assert response == stub.ModelInfer(ask())
    np.testing.assert_array_equal(read(response, "class_map"), expect(tiny_model))


def held_for(tiny_model: Path, *requests: pb.ModelInferRequest | segmentation_pb2.SegmentRequest) -> list[int]:
    """Return how many bytes are held for each request of one image while it is run."""
    segmenter = GatedSegmenter(tiny_model)
    registry = registry_of(segmenter, tiny_model)
    taken = []
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        infer, segment = GRPCInferenceServiceStub(channel).ModelInfer, SegmentationServiceStub(channel).Segment
        for request in requests:
            segmenter.gate.clear()
            method = infer if isinstance(request, pb.ModelInferRequest) else segment
            call = method.future(request, timeout=20)
            assert segmenter.begun.acquire(timeout=60)
            taken.append(registry.held.taken)
            segmenter.gate.set()
            call.result(timeout=60)
            wait_until(lambda: registry.held.taken == 0)
    return taken


def test_raw_pixels_are_held_as_those_of_a_segment_request(tiny_model: Path) -> None:
    height, width, _ = PIXELS[0].shape
    image = segmentation_pb2.RawImage(height=height, width=width, rgb=PIXELS[0].tobytes())
    segment = segmentation_pb2.SegmentRequest(raw=image, encoding=segmentation_pb2.CLASS_MAP_ENCODING_RAW)
    infer, other = held_for(tiny_model, ask(PIXELS[:1], "class_map"), segment)
    assert infer == other


def test_typed_pixels_are_held_at_what_the_message_makes_of_them(tiny_model: Path) -> None:
    pixels = PIXELS[:1]
    typed = pb.ModelInferRequest()
    contents = pb.InferTensorContents(uint_contents=pixels.ravel().tolist())
    typed.inputs.add(name="image", datatype="UINT8", shape=pixels.shape, contents=contents)
    as_raw, as_typed = held_for(tiny_model, ask(pixels), typed)
    # Raw three times; typed in protobuf's array of four bytes each, up to four times, and as bytes.
    assert as_typed - as_raw == (17 - COPIES) * pixels.size


@pytest.mark.parametrize("count", [1, 2])
def test_a_heatmap_is_held_in_its_message_and_as_that_is_sent(tiny_model: Path, count: int) -> None:
    segmenter = GatedSegmenter(tiny_model)
    registry = registry_of(segmenter, tiny_model)
    taken = []
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        for output in ("class_map", "heatmap"):
            segmenter.gate.clear()
            call = GRPCInferenceServiceStub(channel).ModelInfer.future(ask(PIXELS[:count], output), timeout=20)
            wait_until(lambda: sum(map(len, segmenter.batches)) == count)
            taken.append(registry.held.taken)
            segmenter.gate.set()
            call.result(timeout=60)
            wait_until(lambda: registry.held.taken == 0)
            segmenter.batches.clear()
    cells = registry.models[0].info.geometry.cells(*PIXELS.shape[1:3])
    assert taken[1] - taken[0] == 2 * 8 * 3 * cells * count


def test_typed_files_are_answered_as_raw_ones(stub: Any, tiny_model: Path) -> None:
    files = [png(image) for image in PIXELS]
    typed = pb.ModelInferRequest()  # the only model needs no name
    typed.inputs.add(name="image", datatype="BYTES", shape=[3], contents=pb.InferTensorContents(bytes_contents=files))
    raw = pb.ModelInferRequest(raw_input_contents=[b"".join(len(file).to_bytes(4, "little") + file for file in files)])
    raw.inputs.add(name="image", datatype="BYTES", shape=[3])
    response = stub.ModelInfer(typed)
    assert response == stub.ModelInfer(raw)
    np.testing.assert_array_equal(read(response, "class_map"), expect(tiny_model))


def test_only_the_outputs_asked_for_come_and_in_that_order(stub: Any) -> None:
    response = stub.ModelInfer(ask(PIXELS, "heatmap", "class_map"))
    assert [tensor.name for tensor in response.outputs] == ["heatmap", "class_map"]
    everything = stub.ModelInfer(ask())
    assert [tensor.name for tensor in everything.outputs] == ["class_map", "heatmap", "confidence"]
    for name in ("heatmap", "class_map"):
        np.testing.assert_array_equal(read(response, name), read(everything, name))


@pytest.mark.parametrize("output", ["class_map", "confidence"])
@pytest.mark.parametrize("encoding", ["png", "zstd"])
def test_encoded_outputs_hold_the_raw_ones(stub: Any, output: str, encoding: str) -> None:
    request = ask(PIXELS, output)
    request.outputs[0].parameters["encoding"].string_param = encoding
    response = stub.ModelInfer(request)
    (tensor,), (data,) = response.outputs, response.raw_output_contents
    assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [3])
    assert tensor.parameters["encoding"].string_param == encoding
    size = tensor.parameters["height"].int64_param, tensor.parameters["width"].int64_param
    assert (*size, tensor.parameters["datatype"].string_param) == (10, 14, "UINT8")
    for expected in read(stub.ModelInfer(ask()), output):
        length = int.from_bytes(data[:4], "little")
        element, data = data[4 : 4 + length], data[4 + length :]
        if encoding == "png":
            found = masks.read_ids(element)
        else:
            found = np.frombuffer(zstandard.decompress(element), np.uint8).reshape(size)
        np.testing.assert_array_equal(found, expected)
    assert data == b""


def test_images_of_one_request_share_a_run(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    segmenter.gate.set()
    config = ModelConfig("cpu", CPU_CONFIG.options, BatchingConfig(max_batch=8, max_delay_s=5))
    images = np.concatenate([PIXELS, PIXELS, PIXELS[:2]])
    with (
        running_server(registry_of(segmenter, tiny_model, config)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        GRPCInferenceServiceStub(channel).ModelInfer(ask(images, model_version="1"))
    assert [len(batch) for batch in segmenter.batches] == [8]


def test_request_of_more_images_than_may_be_under_way_is_refused_for_good(tiny_model: Path) -> None:
    config = ModelConfig("cpu", CPU_CONFIG.options, BatchingConfig(max_queue=2))
    with (
        running_server(ModelRegistry([tiny_model], config)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ModelConfig(pb.ModelConfigRequest(name="tiny")).config.max_batch_size == 2
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(ask())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "holds 3 images; send at most 2" in caught.value.details()
        stub.ModelInfer(ask(PIXELS[:2]))


def test_request_whose_images_never_fit_together_is_the_clients_mistake(tiny_model: Path) -> None:
    registry = ModelRegistry([tiny_model], replace(CPU_CONFIG, max_memory=2 * 8_000_000))
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="20 images need about .* send fewer at a time") as caught:
            stub.ModelInfer(ask(np.zeros((20, 300, 300, 3), np.uint8), "class_map"), timeout=20)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert registry.models[0].statistics.outcomes == {Outcome.INVALID: 20}
        assert stub.ModelInfer(ask(np.zeros((3, 300, 300, 3), np.uint8), "class_map"), timeout=20).outputs


def test_requests_of_several_images_never_wait_for_each_other_for_ever(tiny_model: Path) -> None:
    """Three images fit into the memory: were it given image by image, two requests of two might hold it for ever."""
    registry = ModelRegistry([tiny_model], replace(CPU_CONFIG, max_memory=2 * 8_000_000))
    request = ask(np.zeros((2, 320, 320, 3), np.uint8), "class_map")
    with running_server(registry) as server, ThreadPoolExecutor(4) as threads:

        def stream(_: int) -> int:
            with grpc.insecure_channel(server.address) as channel:
                return len(list(GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request] * 25), timeout=60)))

        assert list(threads.map(stream, range(4))) == [25] * 4
        assert registry.held.taken == 0


def test_request_beyond_what_may_be_under_way_is_refused_and_a_stream_waits(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    config = ModelConfig("cpu", CPU_CONFIG.options, BatchingConfig(max_batch=1, max_queue=2))
    with (
        running_server(registry_of(segmenter, tiny_model, config)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(ask(PIXELS[:2]))
        assert segmenter.begun.acquire(timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(ask(PIXELS[:1]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream = stub.ModelStreamInfer(iter([ask(PIXELS[:2], id="a"), ask(PIXELS[:2], id="b")]), timeout=20)
        time.sleep(0.3)
        segmenter.gate.set()
        assert [answer.infer_response.id for answer in stream] == ["a", "b"]
        first.result(timeout=60)


def test_stream_reads_only_a_few_requests_ahead(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    sent = 0
    image = np.zeros((1, 800, 800, 3), np.uint8)

    def requests() -> Iterator[pb.ModelInferRequest]:
        nonlocal sent
        for i in range(40):
            sent = i + 1
            yield ask(image, "class_map", id=str(i))

    with (
        running_server(registry_of(segmenter, tiny_model)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests(), timeout=60)
        assert segmenter.begun.acquire(timeout=60)
        time.sleep(0.5)
        assert sent < 35  # what was read ahead, and what fits into the transport's windows
        segmenter.gate.set()
        assert [answer.infer_response.id for answer in stream] == [str(i) for i in range(40)]


def test_images_of_a_cancelled_request_hold_their_memory_until_their_run_has_ended(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    registry = registry_of(segmenter, tiny_model)
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelReady(pb.ModelReadyRequest(name="tiny"), timeout=20)
        cancelled = stub.ModelInfer.future(ask(PIXELS), timeout=20)
        assert segmenter.begun.acquire(timeout=60)
        wait_until(lambda: registry.models[0].admission.pending == 3)
        taken, in_run = registry.held.taken, len(segmenter.batches[0])
        cancelled.cancel()
        registry.models[0].users.wait_until_none(20)
        stub.ModelReady(pb.ModelReadyRequest(name="tiny"), timeout=20)
        wait_until(lambda: registry.held.taken == taken * in_run // 3)
        segmenter.gate.set()
        wait_until(lambda: registry.held.taken == 0)
        assert registry.models[0].admission.pending == 0


def test_images_of_a_request_are_let_in_together_or_not_at_all(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    config = ModelConfig("cpu", CPU_CONFIG.options, BatchingConfig(max_batch=1, max_queue=4))
    registry = registry_of(segmenter, tiny_model, config)
    with running_server(registry) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(ask(PIXELS[:1]), timeout=20)
        assert segmenter.begun.acquire(timeout=60)
        taken = registry.held.taken
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(ask(np.repeat(PIXELS[:1], 4, axis=0)), timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "1 images wait or run, and there is no room for 4 more; ask again later"
        assert registry.models[0].statistics.failure.count == 4
        assert registry.held.taken == taken
        segmenter.gate.set()
        first.result(timeout=60)
        assert stub.ModelInfer(ask(np.repeat(PIXELS[:1], 4, axis=0)), timeout=20).outputs


def test_deadline_ends_a_request_that_waits(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    registry = registry_of(segmenter, tiny_model)
    admission = registry.models[0].admission
    with (
        running_server(registry) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(ask(PIXELS[:1]))
        assert segmenter.begun.acquire(timeout=60)
        late = stub.ModelInfer.future(ask(PIXELS[:1]), timeout=1)
        wait_until(lambda: admission.pending == 2 or late.done())
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: admission.pending == 1)  # by the server's own clock
        hurried = ask(PIXELS[:1])
        hurried.parameters["timeout"].int64_param = 100_000
        second = stub.ModelInfer.future(hurried)
        wait_until(lambda: admission.pending == 2 or second.done())
        time.sleep(0.2)
        segmenter.gate.set()
        first.result(timeout=60)
        assert second.exception(timeout=60).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(segmenter.batches) == 1


def test_stop_answers_what_a_stream_has_sent_and_ends_it(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    held = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield ask(PIXELS[:1], id="a")
        held.wait(20)

    with (
        running_server(registry_of(segmenter, tiny_model), ServerConfig(grace_s=20)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(requests(), timeout=20)
        assert segmenter.begun.acquire(timeout=60)
        server.begin_stop()
        segmenter.gate.set()
        assert next(stream).infer_response.id == "a"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        held.set()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_health_answers_for_the_service(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_unload_answers_what_is_under_way(tiny_model: Path) -> None:
    segmenter = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(segmenter, tiny_model)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer.future(ask(PIXELS[:1]))
        assert segmenter.begun.acquire(timeout=60)
        unloaded = stub.RepositoryModelUnload.future(pb.RepositoryModelUnloadRequest(model_name="tiny"))
        while stub.ModelReady(pb.ModelReadyRequest(name="tiny")).ready:
            time.sleep(0.01)
        segmenter.gate.set()
        assert len(answer.result(timeout=60).outputs) == 3
        unloaded.result(timeout=60)
        states = [model.state for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models]
        assert states == ["UNAVAILABLE"]
        assert list(stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models) == []


def test_statistics_of_all_models_or_of_one_version(tmp_path: Path) -> None:
    for name, version in (("a", 1), ("a", 10), ("a", 9), ("b", 1)):
        write_tiny_model(tmp_path / name / str(version) / "model.onnx")
    with running_server(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)

        def listed(**fields: str) -> list[tuple[str, str]]:
            answer = stub.ModelStatistics(pb.ModelStatisticsRequest(**fields))
            return [(model.name, model.version) for model in answer.model_stats]

        assert listed() == [("a", "1"), ("a", "9"), ("a", "10"), ("b", "1")]
        assert listed(name="a") == [("a", "1"), ("a", "9"), ("a", "10")]
        assert listed(name="a", version="9") == [("a", "9")]
        assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name="a")).versions) == ["1", "9", "10"]
