"""Heatmaps, regions, confidence, overlay: what a request can ask for besides the class map, and how it is written."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnseg import masks, render
from fcnseg.errors import UsageError
from fcnseg.geometry import Geometry
from fcnseg.masks import Encoding
from fcnseg.pictures import JPEG_LARGEST, encode_jpeg
from fcnseg.query import OverlayQuery, require_opacity, require_quality
from fcnseg.regions import (
    DEFAULT_LIMIT,
    DEFAULT_THRESHOLD,
    Region,
    RegionQuery,
    find_regions,
    require_limit,
    require_threshold,
    search_bytes,
)
from fcnseg.types import ClassInfo, LabelMap, Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from serving.converters import other_id_of, select, write_class
from serving.errors import InvalidFieldError
from serving.patience import Patience

# A refusal quotes the name, and gRPC's trailers end at 8 kB.
_LONGEST_NAME = 200
_FEW_NAMES = 100
_DRAWN_PIXEL_BYTES = 12


@dataclass(frozen=True)
class Extras:
    """What a request asks for besides the class map.

    Attributes:
        classes: The classes to distinguish in the class map, each once; empty for all.
        heatmaps: Classes whose heatmaps are wanted, each once.
        regions: Which regions are wanted; None for none.
        confidence: Whether the confidence map is wanted.
        overlay: How the overlay is drawn; None for none.
    """

    classes: tuple[ClassInfo, ...] = ()
    heatmaps: tuple[ClassInfo, ...] = ()
    regions: RegionQuery | None = None
    confidence: bool = False
    overlay: OverlayQuery | None = None

    @property
    def names(self) -> frozenset[str]:
        """What of them is asked for."""
        return frozenset(name for name, wanted in vars(self).items() if wanted)


def reads_at_once(request: pb.SegmentRequest, label_map: LabelMap) -> bool:
    """Tell whether `read_extras` is too quick to be worth a thread: an unknown name is compared with all others."""
    names = list(itertools.chain(request.classes, request.heatmap_classes, request.regions.classes))
    return len(names) <= _FEW_NAMES and all(len(name) <= _LONGEST_NAME and label_map.knows(name) for name in names)


def read_extras(request: pb.SegmentRequest, label_map: LabelMap) -> Extras:
    """Return what a request asks for besides the class map.

    Args:
        request: The request.
        label_map: The model's classes.

    Raises:
        InvalidFieldError: A class is unknown, there are more names than classes, or a number is out of range.
    """
    return Extras(
        classes=_read_classes("classes", request.classes, label_map),
        heatmaps=_read_classes("heatmap_classes", request.heatmap_classes, label_map),
        regions=_read_regions(request.regions, label_map) if request.HasField("regions") else None,
        confidence=request.confidence,
        overlay=_read_overlay(request.overlay) if request.HasField("overlay") else None,
    )


def _read_overlay(query: pb.OverlayQuery) -> OverlayQuery:
    default = OverlayQuery()
    opacity = query.opacity if query.HasField("opacity") else default.opacity
    quality = query.quality or default.quality
    with _naming("overlay.opacity"):
        require_opacity(opacity)
    with _naming("overlay.quality"):
        require_quality(quality)
    return OverlayQuery(opacity, quality)


def _read_regions(query: pb.RegionQuery, label_map: LabelMap) -> RegionQuery:
    _read_classes("regions.classes", query.classes, label_map)
    threshold = query.threshold if query.HasField("threshold") else DEFAULT_THRESHOLD
    limit = query.limit or DEFAULT_LIMIT
    with _naming("regions.threshold"):
        require_threshold(threshold)
    with _naming("regions.limit"):
        require_limit(limit)
    return RegionQuery(tuple(query.classes), threshold, limit, query.min_pixels or 1)


def _read_classes(field: str, names: Sequence[str], label_map: LabelMap) -> tuple[ClassInfo, ...]:
    if len(names) > len(label_map):
        raise InvalidFieldError(
            field, f"{field} holds {len(names)} names where the model has {len(label_map)} classes; name each once"
        )
    found: dict[ClassInfo, None] = {}
    for i, name in enumerate(names):
        if len(name) > _LONGEST_NAME:
            raise InvalidFieldError(
                f"{field}[{i}]", f"a class name has {len(name)} characters; use at most {_LONGEST_NAME}"
            )
        with _naming(f"{field}[{i}]"):
            found[label_map.find(name)] = None
    return tuple(found)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Turn the error of an unusable value into one that names its field."""
    try:
        yield
    except UsageError as error:
        # The traceback of the first error refers to frames, one of which holds the error: a cycle, which keeps the
        # request in memory too long on Python 3.13.
        raise InvalidFieldError(field, str(error)) from error.with_traceback(None)


def require_drawable(extras: Extras, height: int, width: int) -> None:
    """Check that an overlay of that size can be written, if one is requested.

    Raises:
        InvalidFieldError: It cannot.
    """
    if extras.overlay is not None and max(height, width) > JPEG_LARGEST:
        raise InvalidFieldError("overlay", f"a JPEG has at most {JPEG_LARGEST} pixels a side; leave out the overlay")


def scratch_bytes(extras: Extras, height: int, width: int, cells: int) -> int:
    """Return about how many bytes of temporary memory writing extras takes at most; they are written one by one.

    Args:
        extras: What is requested.
        height: The image's rows.
        width: The image's columns.
        cells: Cells of its heatmap, of one class.
    """
    searching = search_bytes(height, width, cells) if extras.regions is not None else 0
    drawing = height * width * _DRAWN_PIXEL_BYTES if extras.overlay is not None else 0
    return max(searching, drawing)


def write_extras(
    response: pb.SegmentResponse,
    extras: Extras,
    image: NDArray[np.uint8],
    segmentation: Segmentation,
    geometry: Geometry,
    patience: Patience,
) -> None:
    """Add what a request asks for besides the class map to its answer.

    Args:
        response: The answer, with its class map.
        extras: What is requested; only that is computed.
        image: (H, W, 3) uint8 RGB.
        segmentation: The image's segmentation.
        geometry: The model's geometry.
        patience: Checked before each extra and while it is written.

    Raises:
        TooLateError: The deadline has passed, or the caller has gone away.
    """
    check = patience.require
    if segmentation.confidence is not None:
        check()
        wire = response.class_map.encoding
        grey = wire in {pb.CLASS_MAP_ENCODING_PNG, pb.CLASS_MAP_ENCODING_COCO_RLE}
        _write_confidence(response.confidence, segmentation.confidence, pb.CLASS_MAP_ENCODING_PNG if grey else wire)
    if extras.heatmaps or extras.regions is not None:
        _write_grid(response.heatmap_grid, segmentation, geometry)
    for info in extras.heatmaps:
        response.heatmaps.add(
            info=write_class(info),
            scores=_write_floats(segmentation.heatmap[info.id]),
            probabilities=_write_floats(segmentation.probabilities_while(check)[info.id]),
        )
    regions: Sequence[Region] = ()
    if extras.regions is not None:
        regions = find_regions(segmentation, geometry, extras.regions, check)
    response.regions.extend(map(_write_region, regions))
    if extras.overlay is not None:
        check()
        response.overlay = _draw(extras.overlay, image, segmentation, extras.classes, regions)


def _write_confidence(message: pb.ConfidenceMap, confidence: NDArray[np.uint8], wire: pb.ClassMapEncoding) -> None:
    encoding = {pb.CLASS_MAP_ENCODING_RAW: Encoding.RAW, pb.CLASS_MAP_ENCODING_ZSTD: Encoding.ZSTD}
    message.height, message.width = confidence.shape
    message.encoding = wire
    message.data = masks.encode(confidence, encoding.get(wire, Encoding.PNG), None)


def _draw(
    overlay: OverlayQuery,
    image: NDArray[np.uint8],
    segmentation: Segmentation,
    only: Sequence[ClassInfo],
    regions: Sequence[Region],
) -> bytes:
    picture = render.overlay(image, segmentation.class_map, segmentation.label_map, overlay.opacity)
    if only:
        render.lay(image, select(segmentation, only) == other_id_of(segmentation.label_map), picture)
    return encode_jpeg(render.boxes(picture, regions) if regions else picture, overlay.quality)


def _write_grid(message: pb.HeatmapGrid, segmentation: Segmentation, geometry: Geometry) -> None:
    message.height, message.width = segmentation.heatmap.shape[1:]
    message.stride.y, message.stride.x = geometry.y.stride, geometry.x.stride
    message.offset_y, message.offset_x = geometry.y.centre(0), geometry.x.centre(0)


def _write_floats(values: NDArray[np.float32]) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _write_region(region: Region) -> pb.Region:
    box = region.box
    return pb.Region(
        info=write_class(region.info),
        box=pb.Box(top=box.top, left=box.left, height=box.height, width=box.width),
        score=region.score,
        peak=region.peak,
        pixel_count=region.pixels,
    )
