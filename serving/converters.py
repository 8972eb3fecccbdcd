"""Converts between protobuf messages and fcnseg's types: the only place in the server that knows both."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnxruntime

from fcnseg import masks, rle
from fcnseg.devices import CUDA, cudnn_version
from fcnseg.engine import Engine
from fcnseg.errors import MaskError
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.types import ClassArea, ClassInfo, ClassMap, Colour, LabelMap, Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.wire import CLASS_MAP_ENCODINGS, CLASS_MAP_TYPES
from serving.batcher import Executed
from serving.errors import InvalidFieldError
from serving.image_sources import EncodedSource, RawSource, Source
from serving.served_model import ServedModel
from serving.statistics import Stages

_OTHER_UINT8, _OTHER_UINT16 = 255, 65535

_ASKED: dict[int, Encoding] = {
    pb.CLASS_MAP_ENCODING_UNSPECIFIED: Encoding.PNG,
    **{wire: encoding for encoding, wire in CLASS_MAP_ENCODINGS.items()},
}


def read_encoding(request: pb.SegmentRequest) -> Encoding:
    """Return the encoding that a request asks for.

    Raises:
        InvalidFieldError: It is not one of the contract's.
    """
    encoding = _ASKED.get(request.encoding)
    if encoding is None:
        known = ", ".join(f"{v} ({n})" for n, v in pb.ClassMapEncoding.items())
        raise InvalidFieldError("encoding", f"unknown class map encoding {request.encoding}; there are {known}")
    return encoding


def require_encodable(encoding: Encoding, height: int, width: int) -> None:
    """Check that a class map of that size can be written.

    Raises:
        InvalidFieldError: It cannot in that encoding.
    """
    if encoding is Encoding.COCO_RLE:
        try:
            rle.require_encodable(height, width)
        except MaskError as error:
            raise InvalidFieldError("encoding", str(error)) from error


def read_source(request: pb.SegmentRequest) -> Source:
    """Return the source of a request's pixels.

    Raises:
        InvalidFieldError: The request has no image.
    """
    kind = request.WhichOneof("image")
    if kind == "encoded":
        return EncodedSource(request.encoded)
    if kind == "raw":
        return RawSource(request.raw.rgb, request.raw.height, request.raw.width)
    raise InvalidFieldError("image", "the request has no image; set 'encoded' to a file's bytes or 'raw' to pixels")


def write_answer(
    response: pb.SegmentResponse,
    executed: Executed,
    encoding: Encoding,
    model: ServedModel,
    only: Sequence[ClassInfo] = (),
) -> None:
    """Write the answer to a Segment request, but for its timings and extras.

    Args:
        response: The message to fill in place; a separate message would be copied twice when put into another.
        executed: The result of the run.
        encoding: How to write the class map.
        model: The model that answered.
        only: The classes to distinguish in the class map; empty for all.
    """
    segmentation = executed.segmentation
    label_map = segmentation.label_map
    other_id = other_id_of(label_map) if only else None
    _write_class_map(response.class_map, select(segmentation, only), encoding, label_map, other_id)
    for area in segmentation.classes:
        if not only or area.info in only:
            _write_area(response.classes.add(), area)
    response.label_map_hash = label_map.hash
    response.model_name = model.name
    response.model_version = model.version
    response.batch_size = executed.batch_size


def other_id_of(label_map: LabelMap) -> int:
    """Return the id for pixels whose class was not requested."""
    return _OTHER_UINT8 if len(label_map) <= _OTHER_UINT8 else _OTHER_UINT16


def select(segmentation: Segmentation, only: Sequence[ClassInfo]) -> ClassMap:
    """Return the class map with only these classes, other pixels having the id of `other_id_of`; empty keeps all."""
    if not only:
        return segmentation.class_map
    other = other_id_of(segmentation.label_map)
    table = np.full(len(segmentation.label_map), other, np.uint8 if other == _OTHER_UINT8 else np.uint16)
    ids = [info.id for info in only]
    table[ids] = ids
    return cast("ClassMap", table[segmentation.class_map])


def _write_class_map(
    message: pb.ClassMap, class_map: ClassMap, encoding: Encoding, label_map: LabelMap, other_id: int | None
) -> None:
    message.height, message.width = class_map.shape
    message.type = CLASS_MAP_TYPES[class_map.dtype]
    message.encoding = CLASS_MAP_ENCODINGS[encoding]
    if other_id is not None:
        message.other_id = other_id
    if encoding is Encoding.COCO_RLE:
        for id_, counts in rle.encode(class_map, other_id).items():
            message.runs.add(id=id_, counts=counts)
    else:
        message.data = masks.encode(class_map, encoding, label_map)


def write_stages(timings: pb.Timings, stages: Stages) -> None:
    """Write the durations of an answer's stages."""
    timings.decode_ms = stages.decode_s * 1000
    timings.queue_ms = stages.queue_s * 1000
    timings.infer_ms = stages.infer_s * 1000
    timings.encode_ms = stages.encode_s * 1000


def write_model(model: ServedModel, limits: ImageLimits, max_request_bytes: int) -> pb.Model:
    """Return a model's description."""
    info, batcher = model.info, model.batcher
    return pb.Model(
        name=model.name,
        version=model.version,
        architecture=info.architecture,
        variant=info.variant,
        classes=[write_class(c) for c in info.label_map.classes],
        label_map_hash=info.label_map.hash,
        class_map_type=CLASS_MAP_TYPES[info.label_map.id_dtype],
        device=model.device,
        licence=info.licence or "",
        metrics=info.metrics,
        output_stride=pb.Stride(y=info.geometry.y.stride, x=info.geometry.x.stride),
        image_limits=pb.ImageLimits(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, max_side=limits.max_side),
        execution=_write_execution(model.engine),
        batching=pb.Batching(
            max_batch=batcher.config.max_batch,
            max_delay_ms=batcher.config.max_delay_s * 1000,
            max_queue=batcher.config.max_queue,
            runners=batcher.config.runners,
        ),
        memory_limits=pb.MemoryLimits(
            max_request_bytes=max_request_bytes,
            max_admitted_bytes=model.admission.memory.total,
            bytes_per_pixel=batcher.bytes_per_pixel,
        ),
        warm_sizes=[pb.ImageSize(height=height, width=width) for height, width in batcher.warm_sizes],
        cold_sizes=batcher.cold_sizes,
    )


def _write_execution(engine: Engine) -> pb.Execution:
    placements = engine.probe.placements if engine.probe else ()
    return pb.Execution(
        runtime=onnxruntime.__version__,
        provider=engine.provider,
        placements=[
            pb.Placement(provider=p.provider, operator=p.operator, nodes=p.nodes, image_sized=p.image_sized)
            for p in placements
        ],
        cudnn=cudnn_version() if engine.provider == CUDA else "",
        precision=engine.precision,
        threads=engine.options.threads,
    )


def write_class(info: ClassInfo) -> pb.Class:
    """Return a class's description."""
    return pb.Class(id=info.id, name=info.name, colour=_write_colour(info.colour))


def _write_area(message: pb.ClassArea, area: ClassArea) -> None:
    message.id = area.info.id
    message.name = area.info.name
    message.pixel_count = area.pixels
    message.fraction = area.fraction
    message.colour = _write_colour(area.info.colour)


def _write_colour(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
