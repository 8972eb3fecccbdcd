"""The inference service: convert, call, convert."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ModelNotFoundError
from fcnseg.masks import Encoding
from fcnseg.model_file import CLASS_MAP, CONFIDENCE, HEATMAP
from serving.administration import Administration
from serving.admission import Ticket
from serving.batcher import Executed
from serving.calls import image_span
from serving.drain import CallCounter
from serving.errors import InvalidFieldError
from serving.handlers import deadline_of, held_by
from serving.health import HealthServicer
from serving.image_sources import Source
from serving.oip import inference_pb2 as pb
from serving.oip.descriptions import (
    most_images,
    write_config,
    write_index,
    write_metadata,
    write_server,
    write_statistics,
)
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceServicer
from serving.oip.outputs import Written, read_outputs, write_outputs, write_response
from serving.oip.tensors import read_sources, reads_at_once
from serving.patience import Patience
from serving.pipeline import Demands, Pipeline
from serving.registry import ModelRegistry
from serving.served_model import ServedModel
from serving.statuses import Refusal
from serving.streams import Turn, answer_in_order

if TYPE_CHECKING:
    from serving.handlers import Context

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_LONGEST_TIMEOUT_US = 10**15


class InferenceServicer(GRPCInferenceServiceServicer):
    """Answers `inference.GRPCInferenceService`; errors leave it as exceptions, for the interceptor.

    Args:
        registry: The models.
        administration: Changes which they are.
        pipeline: Answers images.
        calls: Knows when the server stops, and waits for streams.
        health: The server's health, which its readiness is.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        administration: Administration,
        pipeline: Pipeline,
        calls: CallCounter,
        health: HealthServicer,
    ) -> None:
        self._registry = registry
        self._administration = administration
        self._pipeline = pipeline
        self._calls = calls
        self._health = health

    async def ServerLive(  # noqa: N802 - gRPC calls methods by the contract's names
        self, request: pb.ServerLiveRequest, context: "Context"
    ) -> pb.ServerLiveResponse:
        """Tell that the server answers."""
        del request, context
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: "Context"
    ) -> pb.ServerReadyResponse:
        """Tell whether health is SERVING."""
        del request, context
        return pb.ServerReadyResponse(ready=self._health.serving)

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: "Context"
    ) -> pb.ModelReadyResponse:
        """Tell whether a model is open."""
        del context
        try:
            self._registry.find(request.name, request.version)
        except ModelNotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: "Context"
    ) -> pb.ServerMetadataResponse:
        """Describe the server."""
        del request, context
        return write_server()

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: "Context"
    ) -> pb.ModelMetadataResponse:
        """Describe a model's tensors."""
        del context
        model = self._registry.find(request.name, request.version)
        return write_metadata(model, [other.version for other in self._registry.models if other.name == model.name])

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: "Context"
    ) -> pb.ModelConfigResponse:
        """Describe how a model is run."""
        del context
        return write_config(self._registry.find(request.name, request.version))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: "Context"
    ) -> pb.ModelStatisticsResponse:
        """Tell what models have done."""
        del context
        models = self._registry.models
        if request.name:
            asked = self._registry.find(request.name, request.version)
            models = (asked,) if request.version else tuple(m for m in models if m.name == request.name)
        return pb.ModelStatisticsResponse(model_stats=[write_statistics(model) for model in models])

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: "Context"
    ) -> pb.ModelInferResponse:
        """Segment the images of one request."""
        response = pb.ModelInferResponse()
        await self._infer(response, request, held_by(context), deadline_of(context))
        return response

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: "Context"
    ) -> None:
        """Segment the images of requests as they come, and answer in their order."""
        await answer_in_order(
            request_iterator, self._infer_item, _write_failure, context, self._calls, "ModelStreamInfer"
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: "Context"
    ) -> pb.RepositoryIndexResponse:
        """List the models that there could be."""
        del context
        _require_no_repository(request.repository_name)
        return await asyncio.to_thread(write_index, self._registry, ready=request.ready)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: "Context"
    ) -> pb.RepositoryModelLoadResponse:
        """Make a model what the repository holds of it now."""
        del context
        _require_no_repository(request.repository_name)
        if request.parameters:
            raise InvalidFieldError(
                "parameters", "the server takes no configuration or files from clients; put them into its repository"
            )
        await self._administration.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: "Context"
    ) -> pb.RepositoryModelUnloadResponse:
        """Close all versions of a model."""
        del context
        _require_no_repository(request.repository_name)
        await self._administration.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(
        self,
        response: pb.ModelInferResponse,
        request: pb.ModelInferRequest,
        held: ExitStack,
        deadline: float = math.inf,
        turn: Turn | None = None,
    ) -> None:
        with self._registry.using(request.model_name, request.model_version) as model:
            await self._infer_with(model, response, request, held, min(deadline, _read_deadline(request)), turn)

    async def _infer_with(
        self,
        model: ServedModel,
        response: pb.ModelInferResponse,
        request: pb.ModelInferRequest,
        held: ExitStack,
        deadline: float,
        turn: Turn | None,
    ) -> None:
        outputs = read_outputs(request)
        arguments = (request, most_images(model), self._pipeline.limits)
        if reads_at_once(request):
            sources = read_sources(*arguments)
        else:
            sources = await self._pipeline.in_thread(read_sources, *arguments)

        def write(_: NDArray[np.uint8], executed: Executed, _patience: Patience) -> Written:
            if executed.segmentation.confidence is not None:
                model.drift.add_confidence(executed.segmentation.confidence)
            return write_outputs(outputs, executed.segmentation)

        wanted = frozenset(output.name for output in outputs)
        demands = Demands(
            confidence=CONFIDENCE in wanted,
            scores=HEATMAP in wanted,
            heatmaps=len(model.info.label_map) if HEATMAP in wanted else 0,
            extras=wanted - {CLASS_MAP},
            instant=all(output.encoding is Encoding.RAW for output in outputs),
        )

        async def answer(source: Source, ticket: Ticket | None = None) -> Written:
            written, _ = await self._pipeline.answer(
                model,
                source,
                write,
                held,
                demands=demands,
                deadline=deadline,
                turn=turn,
                ticket=ticket,
            )
            return written

        if len(sources) == 1:
            write_response(response, request, model, outputs, [await answer(sources[0])])
            return
        tickets = await self._pipeline.enter_together(
            model, sources, held, demands=demands, deadline=deadline, turn=turn
        )

        async def answer_one(source: Source, ticket: Ticket) -> Written:
            with image_span():
                return await answer(source, ticket)

        images = await _gather([answer_one(*pair) for pair in zip(sources, tickets, strict=True)])
        await self._pipeline.in_thread(write_response, response, request, model, outputs, images)

    async def _infer_item(self, request: pb.ModelInferRequest, turn: Turn) -> pb.ModelStreamInferResponse:
        """Answer one request of a stream."""
        answer = pb.ModelStreamInferResponse()
        await self._infer(answer.infer_response, request, turn.held, turn=turn)
        if request.parameters["triton_enable_empty_final_response"].bool_param:
            answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer


def _write_failure(request: pb.ModelInferRequest, refusal: Refusal) -> pb.ModelStreamInferResponse:
    nothing = pb.ModelInferResponse(id=request.id)
    return pb.ModelStreamInferResponse(error_message=refusal.message, infer_response=nothing)


async def _gather(answers: Sequence[Coroutine[None, None, Written]]) -> list[Written]:
    """Answer images at the same time; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer) for answer in answers]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _read_deadline(request: pb.ModelInferRequest) -> float:
    """Return when the request itself says that its answer is of no use any more, on the monotonic clock."""
    if "timeout" not in request.parameters:
        return math.inf
    parameter = request.parameters["timeout"]
    kind = parameter.WhichOneof("parameter_choice")
    timeout = {"int64_param": parameter.int64_param, "uint64_param": parameter.uint64_param}.get(kind or "", -1)
    if not 0 <= timeout <= _LONGEST_TIMEOUT_US:
        raise InvalidFieldError(
            "parameters", "parameter 'timeout' must be a whole number of microseconds, 0 for no limit"
        )
    return time.monotonic() + timeout / 1e6 if timeout else math.inf


def _require_no_repository(name: str) -> None:
    if name:
        raise InvalidFieldError("repository_name", "the server's repositories have no names; leave it empty")
