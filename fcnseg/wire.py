"""Convert between protobuf messages and the client's types."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcnseg import masks, rle
from fcnseg.errors import ImageError, ImageTooLargeError, MaskError
from fcnseg.files import shown
from fcnseg.images import ImageLimits, require_pixels
from fcnseg.masks import Encoding
from fcnseg.query import ImageSource, OverlayQuery, SegmentQuery
from fcnseg.regions import Box, Region, RegionQuery
from fcnseg.remote import (
    HeatmapAxis,
    HeatmapGrid,
    RemoteBatching,
    RemoteExecution,
    RemoteHeatmap,
    RemoteMemoryLimits,
    RemoteModel,
    RemoteSegmentation,
    Timings,
)
from fcnseg.types import ClassArea, ClassInfo, ClassMap, Colour, Placement, voc_colour
from fcnseg.v1 import segmentation_pb2 as pb

ERROR_DOMAIN = "fcnseg"
"""The domain of `google.rpc.ErrorInfo` in the errors of `fcnseg serve`."""
STOPPING = "STOPPING"
"""The reason in `ErrorInfo` while a server is stopping: another server, or its successor, takes the request."""
CLASS_MAP_ENCODINGS: dict[Encoding, pb.ClassMapEncoding] = {
    Encoding.RAW: pb.CLASS_MAP_ENCODING_RAW,
    Encoding.ZSTD: pb.CLASS_MAP_ENCODING_ZSTD,
    Encoding.PNG: pb.CLASS_MAP_ENCODING_PNG,
    Encoding.COCO_RLE: pb.CLASS_MAP_ENCODING_COCO_RLE,
}
CLASS_MAP_TYPES: dict[np.dtype[np.uint8] | np.dtype[np.uint16], pb.ClassMapType] = {
    np.dtype(np.uint8): pb.CLASS_MAP_TYPE_UINT8,
    np.dtype(np.uint16): pb.CLASS_MAP_TYPE_UINT16,
}
_FROM_WIRE: dict[int, Encoding] = {wire: encoding for encoding, wire in CLASS_MAP_ENCODINGS.items()}
_DTYPES: dict[int, np.dtype[np.uint8] | np.dtype[np.uint16]] = {wire: dtype for dtype, wire in CLASS_MAP_TYPES.items()}


def write_request(image: ImageSource, query: SegmentQuery, max_bytes: int) -> pb.SegmentRequest:
    """Return the message that asks for an image's segmentation.

    Args:
        image: The image.
        query: What to compute.
        max_bytes: Limit on the message; at most one byte more is read of a file, however long (or endless) it is.

    Raises:
        ImageTooLargeError: The bytes or pixels alone exceed the limit; a message cannot hold more than 2 GiB.
        ImageError: The file cannot be read, or the array is not of the right shape and dtype.
    """
    request = pb.SegmentRequest(
        model_name=query.model,
        model_version=query.version,
        encoding=CLASS_MAP_ENCODINGS[query.encoding],
        heatmap_classes=query.heatmaps,
        regions=None if query.regions is None else _write_regions(query.regions),
        confidence=query.confidence,
        overlay=_write_overlay(query.overlay),
        classes=query.classes,
    )
    if isinstance(image, bytes):
        require_sendable(len(image), max_bytes)
        request.encoded = image
    elif isinstance(image, (str, Path)):
        try:
            with Path(image).open("rb") as file:
                request.encoded = file.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(f"image {shown(Path(image))} cannot be read: {reason}; check the path") from error
    else:
        require_pixels(image)
        require_sendable(image.nbytes, max_bytes)
        request.raw.height, request.raw.width = image.shape[:2]
        request.raw.rgb = np.asarray(image).tobytes()  # a masked array's own `tobytes` would replace masked pixels
    return request


def require_sendable(size: int, max_bytes: int) -> None:
    """Check the size of a request.

    Raises:
        ImageTooLargeError: The size exceeds the limit.
    """
    if size > max_bytes:
        raise ImageTooLargeError(
            f"the request would have {size} bytes, more than the client's limit of {max_bytes}; send an image scaled"
            " down"
        )


def _write_regions(query: RegionQuery) -> pb.RegionQuery:
    return pb.RegionQuery(
        classes=query.classes, threshold=query.threshold, limit=query.limit, min_pixels=query.min_pixels
    )


def _write_overlay(overlay: bool | OverlayQuery) -> pb.OverlayQuery | None:  # noqa: FBT001 - as the client takes it
    if isinstance(overlay, OverlayQuery):
        return pb.OverlayQuery(opacity=overlay.opacity, quality=overlay.quality)
    return pb.OverlayQuery() if overlay else None


def read_segmentation(response: pb.SegmentResponse, started: float, max_bytes: int) -> RemoteSegmentation:
    """Convert an answer's message.

    Args:
        response: The message.
        started: When the request was begun, by `time.perf_counter`.
        max_bytes: The limit on messages, which also holds for the size of the decoded class map.

    Raises:
        MaskError: Class map, confidence map or a heatmap is broken, or a map is too large.
    """
    wire = response.class_map
    grid = _read_grid(response.heatmap_grid) if response.HasField("heatmap_grid") else None
    spent = response.timings
    return RemoteSegmentation(
        class_map=_read_class_map(wire, max_bytes),
        classes=tuple(map(_read_area, response.classes)),
        label_map_hash=response.label_map_hash,
        model_name=response.model_name,
        model_version=response.model_version,
        encoding=_FROM_WIRE[wire.encoding],
        data=wire.data,
        heatmaps=tuple(_read_heatmap(heatmap, grid) for heatmap in response.heatmaps) if grid else (),
        grid=grid,
        regions=tuple(map(_read_region, response.regions)),
        confidence=_read_confidence(response.confidence, wire) if response.HasField("confidence") else None,
        overlay=response.overlay or None,
        batch_size=response.batch_size,
        other_id=wire.other_id if wire.HasField("other_id") else None,
        runs={runs.id: runs.counts for runs in wire.runs},
        timings=Timings(
            decode_ms=spent.decode_ms,
            queue_ms=spent.queue_ms,
            infer_ms=spent.infer_ms,
            encode_ms=spent.encode_ms,
            total_ms=(time.perf_counter() - started) * 1000,  # last, so that reading the answer counts
        ),
    )


def _read_class_map(wire: pb.ClassMap, max_bytes: int) -> ClassMap:
    encoding, dtype = _FROM_WIRE.get(wire.encoding), _DTYPES.get(wire.type)
    if encoding is None or dtype is None:
        raise MaskError(
            f"encoding {wire.encoding} and type {wire.type} of its class map are unknown here; install the server's"
            " version of fcnseg"
        )
    shape = (wire.height, wire.width)
    if (size := wire.height * wire.width * dtype.itemsize) > max_bytes:
        raise MaskError(
            f"a class map of {wire.height} x {wire.width} {dtype.name} ids takes {size} bytes, more than the client's"
            f" limit on messages of {max_bytes}; raise max_message_bytes, or send a smaller image"
        )
    if encoding is not Encoding.COCO_RLE:
        return masks.decode(wire.data, encoding, shape=shape, dtype=dtype)
    runs = {runs.id: runs.counts for runs in wire.runs}
    if len(runs) != len(wire.runs):
        raise MaskError("two masks of one id: ask for them again")
    return rle.decode(runs, shape=shape, dtype=dtype, other_id=wire.other_id if wire.HasField("other_id") else None)


def _read_confidence(wire: pb.ConfidenceMap, class_map: pb.ClassMap) -> NDArray[np.uint8]:
    encoding, shape = _FROM_WIRE.get(wire.encoding), (wire.height, wire.width)
    if encoding is None or encoding is Encoding.COCO_RLE or shape != (class_map.height, class_map.width):
        raise MaskError(
            f"a confidence map of {wire.height} x {wire.width} pixels in encoding {wire.encoding} beside a class map of"
            f" {class_map.height} x {class_map.width}; install the server's version of fcnseg"
        )
    confidence = masks.decode(wire.data, encoding, shape=shape, dtype=np.uint8)
    return confidence.astype(np.uint8, copy=False)


def _read_grid(grid: pb.HeatmapGrid) -> HeatmapGrid:
    return HeatmapGrid(
        y=HeatmapAxis(grid.height, grid.stride.y, grid.offset_y),
        x=HeatmapAxis(grid.width, grid.stride.x, grid.offset_x),
    )


def _read_heatmap(heatmap: pb.Heatmap, grid: HeatmapGrid) -> RemoteHeatmap:
    scores, probabilities = _read_floats(heatmap.scores, grid), _read_floats(heatmap.probabilities, grid)
    return RemoteHeatmap(_read_class(heatmap.info), scores, probabilities)


def _read_floats(data: bytes, grid: HeatmapGrid) -> NDArray[np.float32]:
    shape = (grid.y.cells, grid.x.cells)
    if len(data) != shape[0] * shape[1] * 4:
        raise MaskError(f"a heatmap of {shape[0]} x {shape[1]} cells has {len(data)} bytes, not 4 a cell; ask again")
    return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)


def _read_region(region: pb.Region) -> Region:
    return Region(
        _read_class(region.info),
        Box(region.box.top, region.box.left, region.box.height, region.box.width),
        region.score,
        region.peak,
        region.pixel_count,
    )


def _read_class(info: pb.Class) -> ClassInfo:
    return ClassInfo(info.id, info.name, _read_colour(info.colour))


def _read_area(area: pb.ClassArea) -> ClassArea:
    colour = _read_colour(area.colour) if area.HasField("colour") else voc_colour(area.id)
    return ClassArea(ClassInfo(area.id, area.name, colour), area.pixel_count, area.fraction)


def _read_colour(colour: int) -> Colour:
    return colour >> 16 & 0xFF, colour >> 8 & 0xFF, colour & 0xFF


def read_models(models: Iterable[pb.Model]) -> tuple[RemoteModel, ...]:
    """Convert the descriptions of models, in their order."""
    return tuple(map(read_model, models))


def read_model(model: pb.Model) -> RemoteModel:
    """Convert the description of a model."""
    limits, batching, memory = model.image_limits, model.batching, model.memory_limits
    return RemoteModel(
        name=model.name,
        version=model.version,
        architecture=model.architecture,
        variant=model.variant,
        classes=tuple(map(_read_class, model.classes)),
        label_map_hash=model.label_map_hash,
        device=model.device,
        licence=model.licence or None,
        metrics=dict(model.metrics),
        output_stride=(model.output_stride.y, model.output_stride.x),
        image_limits=ImageLimits(limits.max_bytes, limits.max_pixels, limits.max_side),
        execution=_read_execution(model.execution),
        batching=RemoteBatching(batching.max_batch, batching.max_delay_ms, batching.max_queue, batching.runners),
        memory_limits=RemoteMemoryLimits(memory.max_request_bytes, memory.max_admitted_bytes, memory.bytes_per_pixel),
        warm_sizes=tuple((size.height, size.width) for size in model.warm_sizes),
        cold_sizes=model.cold_sizes,
    )


def _read_execution(execution: pb.Execution) -> RemoteExecution:
    return RemoteExecution(
        runtime=execution.runtime,
        provider=execution.provider,
        placements=tuple(Placement(p.provider, p.operator, p.nodes, p.image_sized) for p in execution.placements),
        cudnn=execution.cudnn or None,
        precision=execution.precision,
        threads=execution.threads,
    )
