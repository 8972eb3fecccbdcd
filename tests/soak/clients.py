"""Clients of every kind, each call of which is counted, and each answer compared with the offline one."""

import io
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from PIL import Image

from fcnseg import masks
from fcnseg.client import Client
from fcnseg.errors import RequestError
from fcnseg.masks import Encoding
from fcnseg.query import OverlayQuery
from fcnseg.regions import RegionQuery, find_regions
from fcnseg.remote import RemoteSegmentation
from fcnseg.types import Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.scraping import scrape
from tests.soak.repository import CHURN, STEADY, Repository
from tests.soak.samples import Pool, Sample
from tests.soak.tally import Tally

_PATIENCE_S = 60.0
_ANSWERED = {"OK", "RESOURCE_EXHAUSTED"}
_BAD = {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
_LATE = {*_ANSWERED, "DEADLINE_EXCEEDED"}
_CANCELLED = {*_ANSWERED, "CANCELLED"}
_METHODS = ("Segment", "SegmentStream", "GetModel", "ModelInfer", "ModelStreamInfer", "ModelMetadata")
_DTYPES = {"UINT8": "u1", "UINT16": "<u2", "FP32": "<f4"}


class Caller:
    """One client that asks for one thing after another, until it is told to stop.

    Args:
        address: The server's.
        http_address: Where it answers probes.
        repository: What it serves.
        pool: What to ask for.
        tally: Takes what came of it.
        rng: Decides what to ask.
    """

    def __init__(
        self, address: str, http_address: str, repository: Repository, pool: Pool, tally: Tally, rng: random.Random
    ) -> None:
        self._address, self._http_address = address, http_address
        self._repository, self._pool, self._tally, self._rng = repository, pool, tally, rng
        self._client, self._channel = self._connect()
        self._kinds: dict[str, tuple[int, Callable[[str], None]]] = {
            "Segment": (30, self._segment),
            "Segment, bad image": (6, self._segment_bad_image),
            "Segment, bad field": (4, self._segment_bad_field),
            "Segment, no time": (6, self._segment_no_time),
            "Segment, cancelled": (6, self._segment_cancelled),
            "SegmentStream": (5, self._stream),
            "SegmentStream, cancelled": (3, self._stream_cancelled),
            "ModelInfer": (10, self._infer),
            "ModelInfer, bad tensor": (4, self._infer_bad_tensor),
            "ModelInfer, cancelled": (3, self._infer_cancelled),
            "ModelStreamInfer": (3, self._infer_stream),
            "garbage": (8, self._garbage),
            "description": (4, self._describe),
            "probe": (3, self._probe),
        }

    def run(self, stopping: threading.Event) -> None:
        """Ask until told to stop; an exception is a problem of the soak's."""
        names = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        try:
            while not stopping.is_set():
                if self._rng.random() < 0.02:
                    self._disconnect()
                    self._client, self._channel = self._connect()
                (name,) = self._rng.choices(names, weights)
                try:
                    self._kinds[name][1](name)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                    self._tally.problem(f"{name}: {type(error).__name__}: {error}")
        finally:
            self._disconnect()

    def _connect(self) -> tuple[Client, grpc.Channel]:
        # A pool of connections of its own: by default gRPC shares one among channels of one address.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return Client(self._address, retries=0, timeout_s=_PATIENCE_S), grpc.insecure_channel(self._address, options)

    def _disconnect(self) -> None:
        self._client.close()
        self._channel.close()

    def _segment(self, kind: str) -> None:
        sample, model, query = self._pool.draw(), self._model(), self._query()
        try:
            answer = self._client.segment(sample.source, model=model, **query)
        except RequestError as error:
            self._tally.call(kind, error.code, self._allowed(model), str(error))
        else:
            self._tally.call(kind, "OK", _ANSWERED)
            self._check(kind, sample, answer, query)

    def _segment_bad_image(self, kind: str) -> None:
        source = self._damaged(self._pool.draw())
        try:
            self._client.segment(source, model="tiny")
        except RequestError as error:
            self._tally.call(kind, error.code, _BAD, str(error))
            if error.code == "INVALID_ARGUMENT" and (error.field != "encoded" or "\n" in str(error)):
                self._tally.problem(f"{kind}: {error.field}: {error}")
        else:
            self._tally.call(kind, "OK", {"OK"})  # damage that does no harm

    def _segment_bad_field(self, kind: str) -> None:
        request = pb.SegmentRequest(model_name="tiny", raw=pb.RawImage(height=2, width=2, rgb=bytes(12)))
        allowed = {"INVALID_ARGUMENT"}
        match self._rng.randrange(6):
            case 0:
                request.raw.height = self._rng.getrandbits(32) | 4
            case 1:
                request.heatmap_classes.extend(["no such class"])
            case 2:
                request.regions.threshold = self._rng.choice([-1, 0, 1, float("nan"), float("inf")])
            case 3:
                request.ClearField("image")
            case 4:
                request.overlay.quality = 101
            case _:
                request.model_version, allowed = str(self._rng.randint(2, 9)), {"NOT_FOUND"}
        self._call(kind, SegmentationServiceStub(self._channel).Segment, request, allowed)

    def _segment_no_time(self, kind: str) -> None:
        request = self._request("slow" if self._rng.random() < 0.6 else self._model(steady=True))
        stub = SegmentationServiceStub(self._channel)
        self._call(kind, stub.Segment, request, _LATE, timeout_s=0.05 * self._rng.random() ** 2)

    def _segment_cancelled(self, kind: str) -> None:
        self._cancel(
            kind, SegmentationServiceStub(self._channel).Segment.future(self._request(self._model(steady=True)))
        )

    def _stream(self, kind: str) -> None:
        model, query = self._model(), self._query()
        samples = [self._pool.draw() for _ in range(self._rng.randint(1, 12))]
        bad = {i for i in range(len(samples)) if self._rng.random() < 0.1}

        def sources() -> Iterator[tuple[int, bytes | NDArray[np.uint8]]]:
            for i, sample in enumerate(samples):
                if self._rng.random() < 0.1:
                    time.sleep(0.3 * self._rng.random())
                yield i, b"no image" if i in bad else sample.source

        in_flight = self._rng.randint(1, 8)
        for item in self._client.segment_stream(sources(), model=model, in_flight=in_flight, **query):
            assert isinstance(item.id, int)
            if item.error is None:
                assert item.segmentation is not None
                self._tally.call(kind, "OK", {"OK"} if item.id not in bad else set())
                self._check(kind, samples[item.id], item.segmentation, query)
            else:
                assert isinstance(item.error, RequestError)
                allowed = {"INVALID_ARGUMENT"} if item.id in bad else set()
                self._tally.call(kind, item.error.code, allowed | self._allowed(model), str(item.error))

    def _stream_cancelled(self, kind: str) -> None:
        requests = (pb.SegmentStreamRequest(id=str(i), request=self._request("slow")) for i in range(30))
        call = SegmentationServiceStub(self._channel).SegmentStream(requests, timeout=_PATIENCE_S)
        try:
            for _ in range(self._rng.randint(0, 3)):
                next(call)
            time.sleep(0.1 * self._rng.random())  # a client that does not read
        finally:
            call.cancel()
        self._tally.call(kind, "CANCELLED", {"CANCELLED"})

    def _infer(self, kind: str) -> None:
        model = self._model()
        asked = self._infer_request(model)
        response = self._call(kind, GRPCInferenceServiceStub(self._channel).ModelInfer, asked[0], self._allowed(model))
        if response is not None:
            self._check_tensors(kind, *asked, response)

    def _infer_bad_tensor(self, kind: str) -> None:
        request, *_ = self._infer_request("tiny")
        match self._rng.randrange(5):
            case 0:
                request.inputs[0].shape[0] = self._rng.choice([0, -1, 2**40, request.inputs[0].shape[0] + 1])
            case 1:
                request.inputs[0].datatype = self._rng.choice(["FP32", "", "uint8"])
            case 2:
                request.raw_input_contents.append(b"more")
            case 3:
                request.inputs[0].name = "picture"
            case _:
                request.outputs.add(name="no such output")
        self._call(kind, GRPCInferenceServiceStub(self._channel).ModelInfer, request, _BAD)

    def _infer_cancelled(self, kind: str) -> None:
        request, *_ = self._infer_request(self._model(steady=True))
        self._cancel(kind, GRPCInferenceServiceStub(self._channel).ModelInfer.future(request))

    def _infer_stream(self, kind: str) -> None:
        model = self._model()
        asked = [self._infer_request(model) for _ in range(self._rng.randint(1, 6))]
        stub = GRPCInferenceServiceStub(self._channel)
        answers = list(stub.ModelStreamInfer(iter([request for request, *_ in asked]), timeout=_PATIENCE_S))
        assert len(answers) == len(asked)
        for (request, samples), answer in zip(asked, answers, strict=True):
            if not answer.error_message:
                self._tally.call(kind, "OK", {"OK"})
                self._check_tensors(kind, request, samples, answer.infer_response)
            elif model == CHURN and answer.error_message.startswith(("no model", "no version")):
                self._tally.call(kind, "NOT_FOUND", {"NOT_FOUND"})
            else:
                self._tally.call(kind, "FAILED", set(), answer.error_message)

    def _garbage(self, kind: str) -> None:
        """Call a method, which may not exist, with bytes that are no message."""
        method, package = self._rng.choice(_METHODS), self._rng.choice(["fcnseg.v1.SegmentationService", None])
        service = package or "inference.GRPCInferenceService"
        data = self._rng.randbytes(self._rng.randint(1, 400))
        allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}
        key = self._rng.choice(["x-request-id", "traceparent", "authorization", "x-other"])
        words = "".join(chr(self._rng.randint(32, 126)) for _ in range(self._rng.randint(0, 300))).strip()
        call = self._channel.stream_stream(f"/{service}/{method}")(
            iter([data]), timeout=_PATIENCE_S, metadata=[(key, words), ("x-bin", self._rng.randbytes(20))]
        )
        with suppress(grpc.RpcError):
            for _ in call:
                pass
        self._tally.call(kind, call.code().name, allowed, call.details())

    def _describe(self, kind: str) -> None:
        models, inference = SegmentationServiceStub(self._channel), GRPCInferenceServiceStub(self._channel)
        steady = self._model(steady=True)
        method, request = self._rng.choice(
            [
                (models.ListModels, pb.ListModelsRequest()),
                (models.GetModel, pb.GetModelRequest(model_name=steady)),
                (inference.ServerMetadata, oip.ServerMetadataRequest()),
                (inference.ModelMetadata, oip.ModelMetadataRequest(name=steady)),
                (inference.ModelConfig, oip.ModelConfigRequest(name=steady)),
                (inference.ModelStatistics, oip.ModelStatisticsRequest()),
                (inference.RepositoryIndex, oip.RepositoryIndexRequest()),
                (health_pb2_grpc.HealthStub(self._channel).Check, health_pb2.HealthCheckRequest()),
            ]
        )
        self._call(kind, method, request, {"OK"})

    def _probe(self, kind: str) -> None:
        path = self._rng.choice(["metrics", "readyz", "healthz", "nothing"])
        if path == "metrics":
            scrape(self._http_address)
            self._tally.call(kind, "200", {"200"})
            return
        try:
            with urllib.request.urlopen(f"http://{self._http_address}/{path}", timeout=_PATIENCE_S) as answer:
                self._tally.call(kind, str(answer.status), {"200"})
        except urllib.error.HTTPError as error:
            self._tally.call(kind, str(error.code), {"404"} if path == "nothing" else set())

    def _model(self, *, steady: bool = False) -> str:
        return CHURN if not steady and self._rng.random() < 0.3 else self._rng.choice(STEADY)

    @staticmethod
    def _allowed(model: str) -> set[str]:
        """Return the codes that a sound request may end with: a model that comes and goes may not be there."""
        return _ANSWERED | ({"NOT_FOUND"} if model == CHURN else set())

    def _query(self) -> dict[str, Any]:
        """Return what is wanted beside the class map: classes by id, so that every model has them."""
        often = self._rng.random
        overlay: bool | OverlayQuery = often() < 0.15
        if often() < 0.05:
            overlay = OverlayQuery(often(), self._rng.randint(1, 100))
        regions = RegionQuery(self._ids(), self._rng.uniform(0.2, 0.9), self._rng.randint(1, 1000))
        return {
            "encoding": self._rng.choice(list(Encoding)),
            "heatmaps": self._ids() if often() < 0.2 else (),
            "regions": regions if often() < 0.15 else None,
            "confidence": often() < 0.3,
            "overlay": overlay,
            "classes": self._ids() if often() < 0.2 else (),
        }

    def _ids(self) -> tuple[str, ...]:
        return tuple(self._rng.sample(["0", "1", "2"], self._rng.randint(1, 3)))

    def _damaged(self, sample: Sample) -> bytes:
        data = bytearray(sample.source if isinstance(sample.source, bytes) else sample.pixels.tobytes()[:5000])
        match self._rng.randrange(3):
            case 0:
                del data[self._rng.randrange(len(data)) :]
            case 1:
                for _ in range(self._rng.randint(1, 20)):
                    data[self._rng.randrange(len(data))] = self._rng.randrange(256)
            case _:
                data = bytearray(self._rng.randbytes(self._rng.randint(0, 500)))
        return bytes(data)

    def _request(self, model: str) -> pb.SegmentRequest:
        sample = self._pool.draw()
        request = pb.SegmentRequest(model_name=model, confidence=self._rng.random() < 0.3)
        if isinstance(sample.source, bytes):
            request.encoded = sample.source
        else:
            height, width, _ = sample.source.shape
            request.raw.CopyFrom(pb.RawImage(height=height, width=width, rgb=sample.source.tobytes()))
        return request

    def _infer_request(self, model: str) -> tuple[oip.ModelInferRequest, list[Sample]]:
        """Return a request of the inference protocol and its images: one of any size, or the same several times."""
        most = 2 if model == "many" else 3  # three of its heatmaps may be more than the server holds together
        samples = [self._pool.draw()] * min(most, self._rng.choice([1, 1, 1, 2, 3]))
        request = oip.ModelInferRequest(model_name=model, id=str(self._rng.random()))
        typed = self._rng.random() < 0.3 and samples[0].pixels.size < 100_000
        tensor = request.inputs.add(name="image")
        if isinstance(samples[0].source, bytes):
            files = [bytes(sample.source) for sample in samples]
            tensor.datatype, tensor.shape[:] = "BYTES", [len(files)]
            if typed:
                tensor.contents.bytes_contents.extend(files)
            else:
                request.raw_input_contents.append(b"".join(len(f).to_bytes(4, "little") + f for f in files))
        else:
            stack = np.stack([sample.pixels for sample in samples])
            tensor.datatype, tensor.shape[:] = "UINT8", stack.shape
            if typed:
                tensor.contents.uint_contents.extend(stack.ravel().tolist())
            else:
                request.raw_input_contents.append(stack.tobytes())
        for name in self._rng.sample(["class_map", "heatmap", "confidence"], self._rng.randint(0, 3)):
            output = request.outputs.add(name=name)
            if name != "heatmap" and self._rng.random() < 0.4:
                output.parameters["encoding"].string_param = self._rng.choice(["raw", "png", "zstd"])
        return request, samples

    def _call(
        self, kind: str, method: Callable[..., Any], request: object, allowed: set[str], timeout_s: float = _PATIENCE_S
    ) -> Any:
        """Call a method, and return its answer where it gives one."""
        try:
            answer = method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            self._tally.call(kind, error.code().name, allowed, error.details() or "")  # type: ignore[attr-defined]
            return None
        self._tally.call(kind, "OK", allowed)
        return answer

    def _cancel(self, kind: str, call: Any) -> None:
        """Cancel a call at some moment, and see what it ended with."""
        time.sleep(0.05 * self._rng.random() ** 2)
        call.cancel()
        self._tally.call(kind, call.code().name, _CANCELLED, call.details() or "")

    def _check(self, kind: str, sample: Sample, answer: RemoteSegmentation, query: dict[str, Any]) -> None:
        """Compare an answer with the offline one."""
        segmenter = self._repository.segmenter(answer.model_name, answer.model_version)
        offline = sample.answer(segmenter)
        wrong = [] if np.array_equal(answer.class_map, _select(offline, query["classes"], answer.other_id)) else ["map"]
        wanted = {int(i) for i in query["classes"]}
        areas = {(c.info.id, c.pixels) for c in offline.classes if not wanted or c.info.id in wanted}
        if {(c.id, c.pixels) for c in answer.classes} != areas:
            wrong.append("areas")
        if query["confidence"] != (answer.confidence is not None) or (
            answer.confidence is not None and not np.array_equal(answer.confidence, offline.confidence)
        ):
            wrong.append("confidence")
        for name, heatmap in zip(query["heatmaps"], answer.heatmaps, strict=True):
            if not np.array_equal(heatmap.scores, offline.heatmap[int(name)]):
                wrong.append(f"heatmap {name}")
        if query["regions"] and answer.regions != find_regions(offline, segmenter.info.geometry, query["regions"]):
            wrong.append("regions")
        if query["overlay"] and _size_of(answer.overlay) != offline.class_map.shape:
            wrong.append("overlay")
        self._judge(kind, wrong, answer.model_name, answer.model_version, sample)

    def _check_tensors(
        self, kind: str, request: oip.ModelInferRequest, samples: list[Sample], response: oip.ModelInferResponse
    ) -> None:
        """Compare tensors with the offline answers."""
        segmenter = self._repository.segmenter(response.model_name, response.model_version)
        wrong = [] if response.id == request.id else ["id"]
        names = [output.name for output in request.outputs] or ["class_map", "heatmap", "confidence"]
        if names != [tensor.name for tensor in response.outputs]:
            wrong.append("outputs")
        for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
            expected = np.stack([getattr(sample.answer(segmenter), tensor.name) for sample in samples])
            if not np.array_equal(_read_tensor(tensor, data), expected):
                wrong.append(tensor.name)
        self._judge(kind, wrong, response.model_name, response.model_version, samples[0])

    def _judge(self, kind: str, wrong: list[str], model: str, version: str, sample: Sample) -> None:
        if wrong:
            what = f"{sample.form} of {sample.pixels.shape[0]}x{sample.pixels.shape[1]}"
            self._tally.problem(f"{kind}: {', '.join(wrong)} of {model}/{version} for a {what} is not the offline one")
        else:
            self._tally.check(model)


def _select(offline: Segmentation, classes: tuple[str, ...], other_id: int | None) -> NDArray[np.generic]:
    """Return the class map of a choice of classes."""
    if not classes:
        return offline.class_map
    chosen = np.isin(offline.class_map, [int(i) for i in classes])
    return np.where(chosen, offline.class_map.astype(np.uint16), np.uint16(-1 if other_id is None else other_id))


def _size_of(picture: bytes | None) -> tuple[int, int]:
    if picture is None:
        return (0, 0)
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        return image.height, image.width


def _read_tensor(tensor: oip.ModelInferResponse.InferOutputTensor, data: bytes) -> NDArray[np.generic]:
    if tensor.datatype != "BYTES":
        return np.frombuffer(data, _DTYPES[tensor.datatype]).reshape(tensor.shape)
    shape = tensor.parameters["height"].int64_param, tensor.parameters["width"].int64_param
    encoding = Encoding(tensor.parameters["encoding"].string_param)
    dtype = tensor.parameters["datatype"].string_param.lower()
    elements = []
    while data:
        length = int.from_bytes(data[:4], "little")
        elements.append(masks.decode(data[4 : 4 + length], encoding, shape=shape, dtype=dtype))
        data = data[4 + length :]
    return np.stack(elements)
