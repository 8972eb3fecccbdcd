"""Between the wire's messages and the client's types."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fcnseg.images import ImageLimits
from fcnseg.regions import Box, Region, RegionQuery
from fcnseg.remote import HeatmapAxis, HeatmapGrid, RemoteHeatmap, RemoteModel
from fcnseg.types import ClassInfo
from fcnseg.v1 import segmentation_pb2 as pb


def write_query(query: RegionQuery) -> pb.RegionQuery:
    """Return the message that asks for regions."""
    return pb.RegionQuery(
        classes=query.classes, threshold=query.threshold, limit=query.limit, min_pixels=query.min_pixels
    )


def read_grid(grid: pb.HeatmapGrid) -> HeatmapGrid:
    """Return where heatmaps' cells lie."""
    return HeatmapGrid(
        y=HeatmapAxis(grid.height, grid.stride.y, grid.offset_y),
        x=HeatmapAxis(grid.width, grid.stride.x, grid.offset_x),
    )


def read_heatmaps(heatmaps: Iterable[pb.Heatmap], grid: HeatmapGrid) -> tuple[RemoteHeatmap, ...]:
    """Return heatmaps as arrays.

    Raises:
        ValueError: One does not have the grid's cells.
    """
    return tuple(
        RemoteHeatmap(
            _read_class(heatmap.info), _read_floats(heatmap.scores, grid), _read_floats(heatmap.probabilities, grid)
        )
        for heatmap in heatmaps
    )


def read_regions(regions: Iterable[pb.Region]) -> tuple[Region, ...]:
    """Return regions in their order."""
    return tuple(
        Region(
            _read_class(region.info),
            Box(region.box.top, region.box.left, region.box.height, region.box.width),
            region.score,
            region.peak,
            region.pixel_count,
        )
        for region in regions
    )


def read_model(model: pb.Model) -> RemoteModel:
    """Return a model's description."""
    return RemoteModel(
        name=model.name,
        version=model.version,
        architecture=model.architecture,
        variant=model.variant,
        classes=tuple(_read_class(c) for c in model.classes),
        label_map_hash=model.label_map_hash,
        device=model.device,
        licence=model.licence or None,
        metrics=dict(model.metrics),
        output_stride=(model.output_stride.y, model.output_stride.x),
        image_limits=ImageLimits(model.image_limits.max_bytes, model.image_limits.max_pixels),
    )


def _read_class(info: pb.Class) -> ClassInfo:
    return ClassInfo(info.id, info.name, (info.colour >> 16 & 0xFF, info.colour >> 8 & 0xFF, info.colour & 0xFF))


def _read_floats(data: bytes, grid: HeatmapGrid) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(grid.y.cells, grid.x.cells).astype(np.float32)
