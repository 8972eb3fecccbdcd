"""The segmentation service: convert, call, convert."""

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcnseg import rle
from fcnseg.exchange import LONGEST_ID
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceServicer
from serving import converters
from serving.batcher import Executed
from serving.drain import CallCounter
from serving.errors import InvalidFieldError
from serving.extras import Extras, read_extras, reads_at_once, require_drawable, scratch_bytes, write_extras
from serving.handlers import deadline_of, held_by
from serving.patience import Patience
from serving.pipeline import Demands, Pipeline
from serving.registry import ModelRegistry
from serving.served_model import ServedModel
from serving.statuses import Refusal
from serving.streams import Turn, answer_in_order

if TYPE_CHECKING:
    from serving.handlers import Context


class SegmentationServicer(SegmentationServiceServicer):
    """Answers `fcnseg.v1.SegmentationService`; errors leave it as exceptions, for the interceptor.

    Args:
        registry: The models.
        pipeline: Answers images.
        calls: Knows when the server stops, and waits for streams.
        max_request_bytes: Bytes of the largest message that is received, to be told.
    """

    def __init__(self, registry: ModelRegistry, pipeline: Pipeline, calls: CallCounter, max_request_bytes: int) -> None:
        self._registry = registry
        self._pipeline = pipeline
        self._calls = calls
        self._max_request_bytes = max_request_bytes

    async def Segment(  # noqa: N802 - gRPC calls methods by the contract's names
        self, request: pb.SegmentRequest, context: "Context"
    ) -> pb.SegmentResponse:
        """Segment one image."""
        response = pb.SegmentResponse()
        await self._segment(response, request, held_by(context), deadline_of(context))
        return response

    async def SegmentStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SegmentStreamRequest], context: "Context"
    ) -> None:
        """Segment images as they come, and answer in their order."""
        await answer_in_order(
            request_iterator, self._segment_item, _write_failure, context, self._calls, "SegmentStream"
        )

    async def ListModels(  # noqa: N802
        self,
        request: pb.ListModelsRequest,
        context: "Context",
    ) -> pb.ListModelsResponse:
        """List the models there are."""
        del request, context
        return pb.ListModelsResponse(models=self.describe_models())

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: "Context"
    ) -> pb.GetModelResponse:
        """Describe one model."""
        del context
        return pb.GetModelResponse(model=self._describe(self._registry.find(request.model_name, request.model_version)))

    def describe_models(self) -> list[pb.Model]:
        """Return all models as the contract describes them."""
        return [self._describe(model) for model in self._registry.models]

    def _describe(self, model: ServedModel) -> pb.Model:
        return converters.write_model(model, self._pipeline.limits, self._max_request_bytes)

    async def _segment(
        self,
        response: pb.SegmentResponse,
        request: pb.SegmentRequest,
        held: ExitStack,
        deadline: float = math.inf,
        turn: Turn | None = None,
    ) -> None:
        with self._registry.using(request.model_name, request.model_version) as model:
            await self._segment_with(model, response, request, held, deadline, turn)

    async def _segment_with(
        self,
        model: ServedModel,
        response: pb.SegmentResponse,
        request: pb.SegmentRequest,
        held: ExitStack,
        deadline: float,
        turn: Turn | None,
    ) -> None:
        encoding = converters.read_encoding(request)
        label_map = model.info.label_map
        if reads_at_once(request, label_map):
            wanted = read_extras(request, label_map)
        else:
            wanted = await self._pipeline.in_thread(read_extras, request, label_map)

        def write(image: NDArray[np.uint8], executed: Executed, patience: Patience) -> None:
            converters.write_answer(response, executed, encoding, model, wanted.classes)
            write_extras(response, wanted, image, executed.segmentation, model.info.geometry, patience)
            model.drift.add_areas(executed.segmentation.classes)
            if executed.segmentation.confidence is not None:
                model.drift.add_confidence(executed.segmentation.confidence)

        _, stages = await self._pipeline.answer(
            model,
            converters.read_source(request),
            write,
            held,
            demands=demands_of(wanted, encoding),
            deadline=deadline,
            turn=turn,
        )
        converters.write_stages(response.timings, stages)

    async def _segment_item(self, item: pb.SegmentStreamRequest, turn: Turn) -> pb.SegmentStreamResponse:
        """Answer one image of a stream; where there is no room it waits, and its sender with it."""
        _require_id(item.id)
        answer = pb.SegmentStreamResponse(id=item.id)
        await self._segment(answer.response, item.request, turn.held, turn=turn)
        return answer


def demands_of(wanted: Extras, encoding: Encoding) -> Demands:
    """Return what an answer with some extras takes, its class map in an encoding."""

    def require_size(height: int, width: int) -> None:
        converters.require_encodable(encoding, height, width)
        require_drawable(wanted, height, width)

    def scratch(height: int, width: int, cells: int) -> int:
        encoding_bytes = rle.encoding_bytes(height, width) if encoding is Encoding.COCO_RLE else 0
        return max(encoding_bytes, scratch_bytes(wanted, height, width, cells))

    return Demands(
        confidence=wanted.confidence,
        scores=bool(wanted.heatmaps) or wanted.regions is not None,
        heatmaps=len(wanted.heatmaps),
        scratch=scratch,
        extras=wanted.names,
        instant=encoding is Encoding.RAW and not wanted.names,
        require_size=require_size,
    )


def _write_failure(item: pb.SegmentStreamRequest, refusal: Refusal) -> pb.SegmentStreamResponse:
    number: int = refusal.code.value[0]
    failure = pb.Failure(code=number, message=refusal.message, field=refusal.field or "")
    return pb.SegmentStreamResponse(id=item.id[:LONGEST_ID], failure=failure)


def _require_id(item_id: str) -> None:
    if len(item_id) > LONGEST_ID:
        raise InvalidFieldError("id", f"an id has {len(item_id)} characters; use at most {LONGEST_ID}")
