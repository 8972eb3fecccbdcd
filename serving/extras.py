"""Heatmaps and regions: what a request asks for beside the class map, and the messages that answer it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import UsageError
from fcnseg.geometry import Geometry
from fcnseg.regions import (
    DEFAULT_LIMIT,
    DEFAULT_THRESHOLD,
    Region,
    RegionQuery,
    find_regions,
    require_limit,
    require_threshold,
)
from fcnseg.types import ClassInfo, LabelMap, Segmentation
from fcnseg.v1 import segmentation_pb2 as pb
from serving.converters import InvalidFieldError, write_class

# A refusal quotes the name, and gRPC's trailers end at 8 kB.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Extras:
    """What a request asks for beside the class map.

    Attributes:
        heatmaps: Classes whose heatmaps are wanted, each once.
        regions: Which regions are wanted; None for none.
    """

    heatmaps: tuple[ClassInfo, ...] = ()
    regions: RegionQuery | None = None


def read_extras(request: pb.SegmentRequest, label_map: LabelMap) -> Extras:
    """Return what a request asks for beside the class map.

    Args:
        request: The request.
        label_map: The model's.

    Raises:
        InvalidFieldError: A class is unknown, there are more names than classes, or a threshold or limit is out of
            range.
    """
    heatmaps = _read_classes("heatmap_classes", request.heatmap_classes, label_map)
    regions = _read_regions(request.regions, label_map) if request.HasField("regions") else None
    return Extras(heatmaps, regions)


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
                f"{field}[{i}]", f"a class name of {len(name)} characters is no model's; use at most {_LONGEST_NAME}"
            )
        with _naming(f"{field}[{i}]"):
            found[label_map.find(name)] = None
    return tuple(found)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Let a value that cannot be used as given name its field."""
    try:
        yield
    except UsageError as error:
        raise InvalidFieldError(field, str(error)) from error


def write_extras(response: pb.SegmentResponse, extras: Extras, segmentation: Segmentation, geometry: Geometry) -> None:
    """Add what a request asks for beside the class map to its answer.

    Args:
        response: The answer.
        extras: What is asked for; where it is nothing, nothing is computed.
        segmentation: The image's.
        geometry: The model's.
    """
    if not extras.heatmaps and extras.regions is None:
        return
    response.heatmap_grid.CopyFrom(_write_grid(segmentation, geometry))
    for info in extras.heatmaps:
        response.heatmaps.add(
            info=write_class(info),
            scores=_write_floats(segmentation.heatmap[info.id]),
            probabilities=_write_floats(segmentation.probabilities[info.id]),
        )
    if extras.regions is not None:
        response.regions.extend(map(_write_region, find_regions(segmentation, geometry, extras.regions)))


def _write_grid(segmentation: Segmentation, geometry: Geometry) -> pb.HeatmapGrid:
    height, width = segmentation.heatmap.shape[1:]
    return pb.HeatmapGrid(
        height=height,
        width=width,
        stride=pb.Stride(y=geometry.y.stride, x=geometry.x.stride),
        offset_y=geometry.y.centre(0),
        offset_x=geometry.x.centre(0),
    )


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
