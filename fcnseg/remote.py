"""What a server answers, as the client hands it on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.regions import Region
from fcnseg.types import ClassInfo, ClassMap


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in milliseconds.

    Attributes:
        decode_ms: Decoding and checking the image.
        queue_ms: Waiting for the model's executor.
        infer_ms: Padding, running the model, cropping.
        encode_ms: Encoding the class map, and computing the heatmaps and regions asked for.
        total_ms: From the call to the decoded answer, as the client saw it.
    """

    decode_ms: float
    queue_ms: float
    infer_ms: float
    encode_ms: float
    total_ms: float


@dataclass(frozen=True)
class RemoteClassArea:
    """How much of an image a class covers.

    Attributes:
        id: The class's id in the class map.
        name: Its name.
        pixels: Pixels of the class, at least 1.
        fraction: Its share of the image's pixels, in (0, 1].
    """

    id: int
    name: str
    pixels: int
    fraction: float


@dataclass(frozen=True)
class HeatmapAxis:
    """Where the cells of heatmaps lie along one axis of an image.

    Attributes:
        cells: Number of cells.
        stride: Pixels from one cell to the next.
        offset: Pixel coordinate of the centre of cell 0; may be negative.
    """

    cells: int
    stride: int
    offset: float

    def centre(self, cell: int) -> float:
        """Pixel coordinate, in the image, of the centre of a cell."""
        return self.offset + self.stride * cell


@dataclass(frozen=True)
class HeatmapGrid:
    """Where the cells of heatmaps lie on an image; `resample.resample_to_pixels` brings them to its pixels."""

    y: HeatmapAxis
    x: HeatmapAxis


@dataclass(frozen=True, eq=False)
class RemoteHeatmap:
    """A class's heatmap on the cells of a `HeatmapGrid`.

    Attributes:
        info: The class.
        scores: (h, w) float32 raw scores: the model file's output `heatmap`.
        probabilities: (h, w) float32 softmax over all of the model's classes, 0 to 1.
    """

    info: ClassInfo
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RemoteSegmentation:
    """A server's answer for one image, at the image's own size.

    Attributes:
        class_map: (H, W) class ids, uint8 up to 256 classes, uint16 beyond.
        classes: Classes present, in the order of their ids.
        label_map_hash: SHA-256 (hex) of the model's label map: equal hashes mean that ids mean the same.
        model_name: The model that answered.
        model_version: Its version.
        timings: Where the time went.
        encoding: Encoding of `data`.
        data: The class map's bytes as the server sent them.
        heatmaps: Those asked for, in the order of their first naming.
        grid: Where the heatmaps' cells lie; None where neither heatmaps nor regions were asked for.
        regions: Those asked for, by descending score.
    """

    class_map: ClassMap
    classes: tuple[RemoteClassArea, ...]
    label_map_hash: str
    model_name: str
    model_version: str
    timings: Timings
    encoding: Encoding
    data: bytes
    heatmaps: tuple[RemoteHeatmap, ...] = ()
    grid: HeatmapGrid | None = None
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class RemoteModel:
    """A model that a server holds.

    Attributes:
        name: Its name.
        version: Its version, a positive number in decimal.
        architecture: The backbone's torchvision or timm name.
        variant: `heatmap`, `fcn32s`, `fcn16s` or `fcn8s`.
        classes: Classes in the order of their ids, which are 0 to K - 1.
        label_map_hash: SHA-256 (hex) of the label map.
        device: Where it runs: `cpu` or `cuda:N`.
        licence: What is known of the licence of weights and training data; None when nothing is.
        metrics: Validation metrics by name, each in 0..1.
        output_stride: Pixels between two heatmap cells, (vertically, horizontally).
        image_limits: Images beyond these are refused.
    """

    name: str
    version: str
    architecture: str
    variant: str
    classes: tuple[ClassInfo, ...]
    label_map_hash: str
    device: str
    licence: str | None
    metrics: dict[str, float]
    output_stride: tuple[int, int]
    image_limits: ImageLimits
