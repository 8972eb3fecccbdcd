"""The segmentation service: convert, call, convert."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, TypeVar

from fcnseg.images import ImageLimits
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceServicer
from serving import converters
from serving.extras import read_extras, write_extras
from serving.models import ModelRegistry

if TYPE_CHECKING:
    from serving.unary import Context

_Result = TypeVar("_Result")


class SegmentationServicer(SegmentationServiceServicer):
    """Answers `fcnseg.v1.SegmentationService`; errors leave it as exceptions, for the interceptor.

    Args:
        registry: The models.
        limits: Images beyond these are refused.
        codecs: Threads that decode images and encode class maps, so that the event loop never waits for them.
    """

    def __init__(self, registry: ModelRegistry, limits: ImageLimits, codecs: Executor) -> None:
        self._registry = registry
        self._limits = limits
        self._codecs = codecs

    async def Segment(  # noqa: N802 - gRPC calls methods by the contract's names
        self, request: pb.SegmentRequest, context: "Context"
    ) -> pb.SegmentResponse:
        """Segment one image."""
        del context
        model = self._registry.find(request.model_name, request.model_version)
        encoding = converters.read_encoding(request)
        (wanted, image), decode_ms = await self._timed(
            lambda: (read_extras(request, model.info.label_map), converters.read_image(request, self._limits))
        )
        executed = await model.executor.segment(image)

        def encode() -> pb.SegmentResponse:
            response = converters.write_segmentation(executed.segmentation, encoding, model)
            write_extras(response, wanted, executed.segmentation, model.info.geometry)
            return response

        response, encode_ms = await self._timed(encode)
        timings = pb.Timings(
            decode_ms=decode_ms, queue_ms=executed.queue_ms, infer_ms=executed.infer_ms, encode_ms=encode_ms
        )
        response.timings.CopyFrom(timings)
        return response

    async def ListModels(  # noqa: N802
        self,
        request: pb.ListModelsRequest,
        context: "Context",
    ) -> pb.ListModelsResponse:
        """List the models there are."""
        del request, context
        models = [converters.write_model(model, self._limits) for model in self._registry.models]
        return pb.ListModelsResponse(models=models)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: "Context"
    ) -> pb.GetModelResponse:
        """Describe one model."""
        del context
        model = self._registry.find(request.model_name, request.model_version)
        return pb.GetModelResponse(model=converters.write_model(model, self._limits))

    async def _timed(self, work: Callable[[], _Result]) -> tuple[_Result, float]:
        """Do work in a codec thread; return its result and the milliseconds it took, waiting for a thread included."""
        started = time.perf_counter()
        result = await asyncio.get_running_loop().run_in_executor(self._codecs, work)
        return result, (time.perf_counter() - started) * 1000
