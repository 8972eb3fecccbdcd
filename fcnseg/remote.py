"""The client's types for a server's answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import ImageError, RequestError
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.regions import Region
from fcnseg.types import ClassArea, ClassInfo, ClassMap, Placement

_MOST_NAMED = 5


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in milliseconds.

    Attributes:
        decode_ms: Decoding and checking the image.
        queue_ms: Waiting for the model's turn.
        infer_ms: Padding, running the model, cropping.
        encode_ms: Encoding the class map, and computing everything else that was asked for.
        total_ms: From the call (in a stream, from the image's turn) to the decoded answer, measured by the client.
    """

    decode_ms: float
    queue_ms: float
    infer_ms: float
    encode_ms: float
    total_ms: float


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
        """Return the image coordinate, in pixels, of a cell's centre."""
        return self.offset + self.stride * cell


@dataclass(frozen=True)
class HeatmapGrid:
    """Where the cells of heatmaps lie on an image; `resample.resample_to_pixels` interpolates them to its pixels."""

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
        classes: Classes present, in the order of their ids; if a subset was asked for, only classes of that subset.
        label_map_hash: SHA-256 (hex) of the model's label map: equal hashes mean that ids mean the same.
        model_name: The model that answered.
        model_version: Its version.
        timings: Where the time went.
        encoding: The encoding in which the class map was sent.
        data: The encoded class map as the server sent it; empty if it was sent as run lengths.
        heatmaps: The heatmaps asked for, each once, in the order of the request.
        grid: Where the heatmaps' cells lie; None if neither heatmaps nor regions were asked for.
        regions: The regions asked for, by descending score.
        confidence: (H, W) uint8, the winning class's softmax probability times 255, rounded; None unless asked for.
        overlay: The overlay as a JPEG file's bytes; None unless asked for.
        batch_size: How many images the model computed together, this one included.
        other_id: The id of pixels whose class was not among those asked for; None if no subset was asked for.
        runs: Run lengths of each class's mask (`rle`) as the server sent them, by ascending id; empty if the class map
            was sent in another encoding.
    """

    class_map: ClassMap
    classes: tuple[ClassArea, ...]
    label_map_hash: str
    model_name: str
    model_version: str
    timings: Timings
    encoding: Encoding
    data: bytes
    heatmaps: tuple[RemoteHeatmap, ...] = ()
    grid: HeatmapGrid | None = None
    regions: tuple[Region, ...] = ()
    confidence: NDArray[np.uint8] | None = None
    overlay: bytes | None = None
    batch_size: int = 1
    other_id: int | None = None
    runs: Mapping[int, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Summarise the answer in one line, since its bytes and arrays would fill screens."""
        height, width = self.class_map.shape
        largest = sorted(self.classes, key=lambda area: -area.pixels)[:_MOST_NAMED]
        shares = [f"{area.name} {area.fraction:.1%}" for area in largest]
        others = len(self.classes) - len(largest)
        return (
            f"<RemoteSegmentation of {height} x {width} pixels by {self.model_name} version {self.model_version}:"
            f" {', '.join(shares) or 'no class'}{f' and {others} more' if others else ''}>"
        )


@dataclass(frozen=True, eq=False)
class StreamItem:
    """The outcome for one image of a stream.

    Attributes:
        id: The id given, or the image's position.
        segmentation: The answer; None if there is an error.
        error: Why there is no answer: the client cannot read the image, or the server refused it.
    """

    id: str | int
    segmentation: RemoteSegmentation | None = None
    error: ImageError | RequestError | None = None

    def result(self) -> RemoteSegmentation:
        """Return the answer.

        Raises:
            ImageError: The image cannot be read.
            RequestError: The server refused the image, or failed.
        """
        if self.segmentation is None:
            raise self.error or ValueError(f"stream item {self.id} has neither an answer nor an error")
        return self.segmentation


@dataclass(frozen=True)
class RemoteExecution:
    """How a model is run, as the runtime reported for a run when the server started.

    Attributes:
        runtime: onnxruntime's version.
        provider: The execution provider that was requested.
        placements: Which operators ran on which provider; empty if the server did not profile the run.
        cudnn: cuDNN's version; None on the CPU and if cuDNN is absent.
        precision: Precision of the arithmetic: `fp32`, `tf32`, `fp16` or `int8`.
        threads: CPU threads within an operator; 0 stands for one per physical core.
    """

    runtime: str
    provider: str
    placements: tuple[Placement, ...]
    cudnn: str | None
    precision: str
    threads: int


@dataclass(frozen=True)
class RemoteBatching:
    """How requests are batched.

    Attributes:
        max_batch: Most images in one run.
        max_delay_ms: How long an idle model waits for more images of one padded size, in milliseconds.
        max_queue: Most images in progress at a time.
        runners: Concurrent runs while images wait; on the CPU they share the threads that a single run would have.
    """

    max_batch: int
    max_delay_ms: float
    max_queue: int
    runners: int


@dataclass(frozen=True)
class RemoteMemoryLimits:
    """Limits that follow from the memory of a server.

    Attributes:
        max_request_bytes: Most bytes of a request's message.
        max_admitted_bytes: Most bytes that all images in progress may take together.
        bytes_per_pixel: Bytes that the model takes for each pixel of a padded image.
    """

    max_request_bytes: int
    max_admitted_bytes: int
    bytes_per_pixel: float


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
        licence: What is known about the licence of weights and training data; None if nothing is known.
        metrics: Validation metrics by name, each in 0..1.
        output_stride: Pixels between two heatmap cells, (vertically, horizontally).
        image_limits: Images beyond these are refused.
        execution: How the model is run.
        batching: How requests are batched, and how many may wait.
        memory_limits: Limits that follow from the server's memory.
        warm_sizes: (height, width) of the images that the model was run on before the server was ready.
        cold_sizes: Number of further padded sizes that have been requested since, each slower the first time.
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
    execution: RemoteExecution
    batching: RemoteBatching
    memory_limits: RemoteMemoryLimits
    warm_sizes: tuple[tuple[int, int], ...]
    cold_sizes: int

    def __repr__(self) -> str:
        """Summarise the model in one line, since there may be thousands of classes."""
        return (
            f"<RemoteModel {self.name} version {self.version}: {self.variant} of {self.architecture},"
            f" {len(self.classes)} classes, on {self.device}>"
        )
