"""The segmentation model: normalisation, padding, net, resampling and crop in one module.

Training, validation and the exported graph all run this module, so that preprocessing cannot drift between them.
"""

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fcnseg.errors import ArchitectureError
from fcnseg.geometry import AxisGeometry, Geometry
from fcnseg.model_file import CELL_RESOLUTION_ABOVE
from fcnseg.types import LUMA, MOST_CLASSES, Rgb
from training.config import TailChoice, Upsampling, Variant
from training.fcn import build_fcn
from training.grid import Lattice
from training.net_grid import NetGrid
from training.pixel_blocks import PixelBlocks
from training.resample import PIXELS, enlarge_nearest, resample, resample_channels_last
from training.tracing import input_channels
from training.zoo import Classifier, load_classifier


class SegmentationModel(nn.Module):
    """A net with all the preprocessing and postprocessing between an image of any size and its class map.

    Args:
        net: Maps (N, 3, H, W) normalised float to (N, K, h, w) scores; or (N, 1, H, W), with images converted to grey.
        net_grid: The grids of the net's maps.
        classifier: The classifier the net was made from; gives name, normalisation and native size.
        variant: `heatmap`, `fcn32s`, `fcn16s` or `fcn8s`.

    Attributes:
        architecture: The classifier's name.
        variant: The argument `variant`.
        mean: Channel means that are subtracted, of values in 0..1.
        std: Channel standard deviations that are divided by.
        normalisation_source: Where mean and std come from, in a phrase.
        licence: What is known about the weights' licence.
        classifier_classes: Number of the classifier's classes, on which layers that some nets keep depend.
        geometry: How an image of any size is padded for the net, and how the heatmap's cells map back to its pixels.
        global_context: Modules through which a cell depends on the whole image.
        num_classes: Number of classes that the net scores, K.
        on_tensor_cores: Whether class map and confidence are computed in the way that is fastest on a GPU
            (`training.precision`).

    Raises:
        ArchitectureError: The net takes neither RGB nor grey images, or scores more classes than class maps can
            represent.
    """

    def __init__(
        self,
        net: nn.Module,
        net_grid: NetGrid,
        classifier: Classifier,
        variant: Literal["heatmap"] | Variant,
    ) -> None:
        super().__init__()
        self.net = net
        self.architecture = classifier.architecture
        self.variant = variant
        self.mean = classifier.mean
        self.std = classifier.std
        self.normalisation_source = classifier.normalisation_source
        self.licence = classifier.licence
        self.classifier_classes = classifier.num_classes
        self.global_context = net_grid.global_context
        self.num_classes = net_grid.channels
        self.geometry = _geometry(net_grid)
        self.on_tensor_cores = False
        self._scale: Tensor
        self._shift: Tensor
        # Scale and shift of 0..255 values, so that the graph normalises with one multiplication and one addition.
        scale = torch.tensor([1 / (255 * s) for s in self.std])
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)])
        channels = input_channels(classifier.net, classifier.input_size)
        self._is_grey = channels == 1
        if self._is_grey:
            scale, shift = scale * torch.tensor(LUMA), (shift * torch.tensor(LUMA)).sum()[None]
        elif channels != 3:
            raise ArchitectureError(
                f"{self.architecture} takes images of {channels} channels; nets of 3 (RGB) or 1 (grey) are supported"
            )
        if self.num_classes > MOST_CLASSES:
            raise ArchitectureError(
                f"{self.architecture} scores {self.num_classes} classes, and class maps can tell {MOST_CLASSES} apart;"
                " choose a classifier of fewer"
            )
        self.register_buffer("_scale", scale.view(1, 3, 1, 1), False)
        self.register_buffer("_shift", shift.view(1, -1, 1, 1), False)

    def heatmap(self, image: Tensor) -> Tensor:
        """Score an image at the net's own stride.

        Args:
            image: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, K, h, w) float32 scores; cell i is centred at pixel `geometry.centre(i)`.
        """
        pad = _gather_edges if self.on_tensor_cores else _join_edges
        padded = pad(pad(image, 1, self.geometry.y), 2, self.geometry.x)
        scaled = padded.permute(0, 3, 1, 2).to(self._scale.dtype) * self._scale
        normalised = (scaled.sum(1, keepdim=True) if self._is_grey else scaled) + self._shift
        scores: Tensor = self.net(normalised.to(next(self.net.parameters()).dtype))  # may be 16-bit floats
        return scores.to(self._scale.dtype)

    def pixel_scores(self, image: Tensor) -> Tensor:
        """Score every pixel of an image.

        Args:
            image: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, K, H, W) float32 scores.
        """
        return self.enlarge_scores(self.heatmap(image), (image.shape[1], image.shape[2]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the outputs of the model file.

        Args:
            image: (N, H, W, 3) uint8 RGB.

        Returns:
            `class_map` (N, H, W) uint8 up to 256 classes, else int32 (ONNX makes it uint16); `heatmap` (N, K, h, w)
            float32; `confidence` (N, H, W) uint8, the winning class's softmax probability times 255, rounded. Above 64
            classes, class and confidence are computed at the heatmap's cells and enlarged by nearest neighbour.
        """
        size = (image.shape[1], image.shape[2])
        heatmap = self.heatmap(image)
        if self.class_map_at == "pixel" and self.on_tensor_cores:
            scores = resample_channels_last(heatmap, self._image_lattice, (PIXELS, PIXELS), size)
            probability = 1 / (scores - scores.amax(3, keepdim=True)).exp().sum(3)
            return scores.argmax(3).to(torch.uint8), heatmap, (probability * 255).round().to(torch.uint8)
        if self.class_map_at == "pixel":
            class_map, confidence = PixelBlocks(heatmap, self._image_lattice, size).classes_and_confidences()
            return class_map, heatmap, confidence
        return self.enlarge(_classes(heatmap), size), heatmap, self.enlarge(_confidence(heatmap), size)

    def enlarge_scores(self, heatmap: Tensor, size: tuple[int, int]) -> Tensor:
        """Interpolate the scores of cells to an image's pixels: (N, K, h, w) becomes (N, K, H, W)."""
        return resample(heatmap, self._image_lattice, (PIXELS, PIXELS), size)

    def enlarge(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        """Give every pixel the value of the heatmap's nearest cell: (N, h, w) becomes (N, H, W)."""
        return enlarge_nearest(cells, self._image_lattice, (PIXELS, PIXELS), size)

    def class_map(self, heatmap: Tensor, size: tuple[int, int]) -> Tensor:
        """Return only the class map of `forward`, computing scores only at borders between classes: fastest on a CPU.

        For nets of up to 64 classes that are not `on_tensor_cores`.

        Args:
            heatmap: (N, K, h, w) float32, as `heatmap` returns it.
            size: (H, W) of the images.

        Returns:
            (N, H, W) uint8.
        """
        return PixelBlocks(heatmap, self._image_lattice, size).classes()

    @property
    def class_map_at(self) -> Literal["pixel", "cell"]:
        """Whether the arg-max is taken at every pixel or at the heatmap's cells."""
        return "pixel" if self.num_classes <= CELL_RESOLUTION_ABOVE else "cell"

    @property
    def has_plain_class_map(self) -> bool:
        """Whether the class map without confidences has its own computation (`class_map`)."""
        return self.class_map_at == "pixel" and not self.on_tensor_cores

    @property
    def normalisation(self) -> str:
        """Mean, standard deviation and where they come from, in a phrase to print."""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} ({self.normalisation_source})"

    @property
    def _image_lattice(self) -> tuple[Lattice, Lattice]:
        y, x = self.geometry.y, self.geometry.x
        return Lattice(y.stride, y.centre(0)), Lattice(x.stride, x.centre(0))


def build_model(
    architecture: str,
    variant: Variant,
    num_classes: int,
    *,
    tail: TailChoice = "auto",
    upsampling: Upsampling = "bilinear",
    skip_scale: float = 1.0,
    weights: Path | None = None,
    mean: Rgb | None = None,
    std: Rgb | None = None,
    input_size: tuple[int, int] | None = None,
    classifier_classes: int | None = None,
    pretrained: bool = True,
) -> SegmentationModel:
    """Build an FCN from a classifier by name, ready to be trained.

    Args:
        architecture: A torchvision name, or `timm/NAME`.
        variant: fcn32s, fcn16s or fcn8s.
        num_classes: Number of classes to score.
        tail: As for `build_fcn`: what the coarsest scores are computed from.
        upsampling: As for `build_fcn`: how scores are upsampled from one map to the next finer one.
        skip_scale: As for `build_fcn`: factor for the first skip's features before they are scored.
        weights: A file with the classifier's state_dict; None takes the zoo's.
        mean: Channel means that belong to the weights; None takes the zoo's.
        std: Channel standard deviations that belong to the weights; None takes the zoo's.
        input_size: Native (height, width); None takes the zoo's.
        classifier_classes: Number of the classifier's classes if its weights are random; None takes the zoo's.
        pretrained: False leaves the weights random, for a checkpoint to be loaded into, or to train from scratch.

    Raises:
        ArchitectureError: The architecture is unknown or cannot become convolutional.
        WeightsError: The weights cannot be obtained or do not fit.
        UsageError: The variant or the tail does not suit the net.
    """
    classifier = load_classifier(
        architecture,
        weights=weights,
        mean=mean,
        std=std,
        input_size=input_size,
        num_classes=classifier_classes,
        pretrained=pretrained,
    )
    fcn = build_fcn(
        classifier.net,
        variant,
        num_classes,
        classifier.input_size,
        tail=tail,
        upsampling=upsampling,
        skip_scale=skip_scale,
    )
    return SegmentationModel(fcn, fcn.net_grid, classifier, variant)


def _geometry(net_grid: NetGrid) -> Geometry:
    y, x = (_axis_geometry(net_grid, axis) for axis in (0, 1))
    return Geometry(y, x)


def _axis_geometry(net_grid: NetGrid, axis: int) -> AxisGeometry:
    alignment = net_grid.alignment[axis]
    lead = trail = 0
    for scored in net_grid.maps:  # every scored map has to cover every pixel
        lattice, extra_cells = scored.lattice[axis], scored.extra_cells[axis]
        # The fewest whole alignments that bring cell 0's centre to within one stride of pixel 0.
        lead = max(lead, (math.floor((lattice.offset - lattice.stride) / alignment) + 1) * alignment)
        # The centre of the last cell, padded / stride + extra_cells - 1, must be within one stride of the last pixel.
        trail = max(trail, math.ceil(-lattice.offset - lattice.stride * extra_cells))
    answer = net_grid.maps[-1]
    stride, offset = answer.lattice[axis].stride, answer.lattice[axis].offset
    grid = (net_grid.grid.y, net_grid.grid.x)[axis]
    reach = max(offset - float(grid.first), float(grid.last) - offset)
    return AxisGeometry(
        stride=stride,
        offset=offset,
        field=grid.field,
        alignment=alignment,
        minimum=max(net_grid.minimum[axis], -(-(lead + trail + 1) // alignment) * alignment),
        lead=lead,
        trail=trail,
        extra_cells=answer.extra_cells[axis],
        margin=math.ceil(reach) + stride,
    )


def _padded(axis: AxisGeometry, size: int) -> int | torch.SymInt:
    """Compute `AxisGeometry.padded` for a size that may be symbolic."""
    multiples = (size + axis.lead + axis.trail + axis.alignment - 1) // axis.alignment
    return axis.alignment * torch.sym_max(axis.minimum // axis.alignment, multiples)


def _join_edges(image: Tensor, dim: int, axis: AxisGeometry) -> Tensor:
    """Edge-pad the rows (or columns) of images as the net requires, in the way that is fastest on a CPU."""
    size = image.shape[dim]

    def edge(at: int, count: int | torch.SymInt) -> Tensor:
        shape: list[int | torch.SymInt] = list(image.shape)
        shape[dim] = count
        return image.narrow(dim, at, 1).expand(shape)

    before = [edge(0, axis.lead)] if axis.lead else []
    behind = edge(size - 1, _padded(axis, size) - axis.lead - size)
    return torch.cat([*before, image, behind], dim)


def _gather_edges(image: Tensor, dim: int, axis: AxisGeometry) -> Tensor:
    """Do the same as `_join_edges` in a single GPU kernel, to which no addresses have to be copied."""
    size = image.shape[dim]
    sources = torch.arange(_padded(axis, size), device=image.device) - axis.lead
    return image.index_select(dim, sources.clamp(min=0).clamp(max=size - 1))


def _classes(scores: Tensor) -> Tensor:
    """Return the arg-max over the classes: uint8 up to 256 classes, else int32."""
    return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)


def _confidence(scores: Tensor) -> Tensor:
    """Return the winning class's softmax probability times 255, rounded, uint8."""
    return (scores.softmax(1).amax(1) * 255).round().to(torch.uint8)
