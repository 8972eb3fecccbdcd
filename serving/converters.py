"""Between the wire's messages and fcnseg's types: the only place in the server that knows both."""

import numpy as np
from numpy.typing import NDArray

from fcnseg import images, masks
from fcnseg.errors import ImageError, UsageError
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.types import ClassInfo, Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from serving.models import ServedModel

_MAX_UINT8_CLASSES = 256

_ENCODINGS: dict[int, Encoding] = {
    pb.CLASS_MAP_ENCODING_UNSPECIFIED: Encoding.PNG,
    pb.CLASS_MAP_ENCODING_RAW: Encoding.RAW,
    pb.CLASS_MAP_ENCODING_ZSTD: Encoding.ZSTD,
    pb.CLASS_MAP_ENCODING_PNG: Encoding.PNG,
}
_ON_WIRE: dict[Encoding, pb.ClassMapEncoding] = {
    Encoding.RAW: pb.CLASS_MAP_ENCODING_RAW,
    Encoding.ZSTD: pb.CLASS_MAP_ENCODING_ZSTD,
    Encoding.PNG: pb.CLASS_MAP_ENCODING_PNG,
}
_TYPES: dict[np.dtype[np.generic], pb.ClassMapType] = {
    np.dtype(np.uint8): pb.CLASS_MAP_TYPE_UINT8,
    np.dtype(np.uint16): pb.CLASS_MAP_TYPE_UINT16,
}


class InvalidFieldError(UsageError):
    """A request's field has no valid value.

    Args:
        field: The field, as in the contract, such as `raw.rgb`.
        message: One line for a user.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def read_encoding(request: pb.SegmentRequest) -> Encoding:
    """Return the encoding that a request asks for.

    Raises:
        InvalidFieldError: It is not one of the contract's.
    """
    encoding = _ENCODINGS.get(request.encoding)
    if encoding is None:
        known = ", ".join(f"{v} ({n})" for n, v in pb.ClassMapEncoding.items())
        raise InvalidFieldError("encoding", f"unknown class map encoding {request.encoding}; there are {known}")
    return encoding


def read_image(request: pb.SegmentRequest, limits: ImageLimits) -> NDArray[np.uint8]:
    """Return a request's image as (H, W, 3) uint8 RGB.

    Raises:
        InvalidFieldError: There is no image, it cannot be read, or it is beyond a limit.
    """
    source = request.WhichOneof("image")
    if source == "encoded":
        try:
            return images.decode(request.encoded, limits)
        except ImageError as error:
            raise InvalidFieldError("encoded", str(error)) from error
    if source == "raw":
        return _read_raw(request.raw, limits)
    raise InvalidFieldError("image", "the request has no image; set 'encoded' to a file's bytes or 'raw' to pixels")


def _read_raw(raw: pb.RawImage, limits: ImageLimits) -> NDArray[np.uint8]:
    for name, size in (("height", raw.height), ("width", raw.width)):
        if size == 0:
            raise InvalidFieldError(f"raw.{name}", f"a raw image's {name} is 0; it must be at least 1")
    if raw.height * raw.width > limits.max_pixels:
        raise InvalidFieldError(
            "raw",
            f"the raw image has {raw.height} x {raw.width} pixels where at most {limits.max_pixels} are allowed;"
            " send a smaller one",
        )
    expected = raw.height * raw.width * 3
    rgb = raw.rgb  # every access copies
    if len(rgb) != expected:
        raise InvalidFieldError(
            "raw.rgb",
            f"a raw image of {raw.height} x {raw.width} pixels has {expected} bytes of RGB; got {len(rgb)}",
        )
    return np.frombuffer(rgb, np.uint8).reshape(raw.height, raw.width, 3)


def write_segmentation(segmentation: Segmentation, encoding: Encoding, model: ServedModel) -> pb.SegmentResponse:
    """Return the answer to a Segment request, but for its timings.

    Args:
        segmentation: The answer.
        encoding: How to write its class map.
        model: The model that answered.
    """
    height, width = segmentation.class_map.shape
    return pb.SegmentResponse(
        class_map=pb.ClassMap(
            height=height,
            width=width,
            type=_TYPES[segmentation.class_map.dtype],
            encoding=_ON_WIRE[encoding],
            data=masks.encode(segmentation.class_map, encoding, segmentation.label_map),
        ),
        classes=[
            pb.ClassArea(id=a.info.id, name=a.info.name, pixel_count=a.pixels, fraction=a.fraction)
            for a in segmentation.classes
        ],
        label_map_hash=segmentation.label_map.hash,
        model_name=model.name,
        model_version=model.version,
    )


def write_model(model: ServedModel, limits: ImageLimits) -> pb.Model:
    """Return a model's description."""
    info = model.info
    return pb.Model(
        name=model.name,
        version=model.version,
        architecture=info.architecture,
        variant=info.variant,
        classes=[write_class(c) for c in info.label_map.classes],
        label_map_hash=info.label_map.hash,
        class_map_type=_TYPES[np.dtype(np.uint8 if len(info.label_map) <= _MAX_UINT8_CLASSES else np.uint16)],
        device=model.device,
        licence=info.licence or "",
        metrics=info.metrics,
        output_stride=pb.Stride(y=info.geometry.y.stride, x=info.geometry.x.stride),
        image_limits=pb.ImageLimits(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels),
    )


def write_class(info: ClassInfo) -> pb.Class:
    """Return a class's description."""
    red, green, blue = info.colour
    return pb.Class(id=info.id, name=info.name, colour=red << 16 | green << 8 | blue)
