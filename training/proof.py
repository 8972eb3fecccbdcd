"""Measure how closely a heatmap net computes its classifier."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcnseg.errors import ArchitectureError, one_line
from training.device import exact_products
from training.grid_tracer import tensors_in
from training.net_grid import NetGrid
from training.photographs import PHOTOGRAPHS, photographs
from training.refusal import refuse_answer
from training.tracing import input_channels

_NOISE_IMAGES = 2
_SAME = 1e-4
"""The largest difference of a cell due to float32 rounding, when kernels add in another order."""


class Errors(NamedTuple):
    """Largest absolute difference from the classifier's logits over the largest absolute logit, at the native size.

    Attributes:
        noise: The error on seeded random images.
        photographs: The error on photographs; None if the net's number of channels is not that of a photograph.
    """

    noise: float
    photographs: float | None


@exact_products()
def measure_errors(
    model: nn.Module, net: nn.Module, pooled_cells: tuple[int, int], input_size: tuple[int, int]
) -> Errors:
    """Compare a heatmap net with its classifier at the native size.

    Args:
        model: Maps (N, C, H, W) float to (N, K) logits; in eval mode.
        net: Maps (N, C, H, W) float to (N, K, h, w); in eval mode.
        pooled_cells: (y, x) cells of the net's map that the classifier averages.
        input_size: Native (height, width).

    Raises:
        ArchitectureError: The model does not return logits.
    """
    channels = input_channels(model, input_size)
    noise = _relative_error(model, net, pooled_cells, _noise(model, _NOISE_IMAGES, channels, input_size))
    photos = _photographs(model, PHOTOGRAPHS, channels, input_size)
    return Errors(noise, None if photos is None else _relative_error(model, net, pooled_cells, photos))


@exact_products()
def measure_border_effect(
    model: nn.Module,
    net: nn.Module,
    pooled_cells: tuple[int, int],
    input_size: tuple[int, int],
    alignment: tuple[int, int],
) -> float:
    """Compare a cell in the middle of a larger image's map with the classifier's answer for the cell's own crop.

    Args:
        model: As for `measure_errors`.
        net: As for `measure_errors`.
        pooled_cells: As for `measure_errors`.
        input_size: Native (height, width), which is the size of the crop.
        alignment: (y, x) pixels around the crop; shifting the image by this much shifts the map by whole cells.

    Returns:
        Largest absolute difference over the largest absolute logit.
    """
    (height, width), (top, left) = input_size, alignment
    larger = (height + 2 * top, width + 2 * left)
    channels = input_channels(model, input_size)
    images = _photographs(model, 1, channels, larger)
    images = _noise(model, 1, channels, larger) if images is None else images
    logits = _logits(model, images[:, :, top : top + height, left : left + width])
    with torch.no_grad():
        cells = F.avg_pool2d(net(images), pooled_cells, 1)  # (1, K, h, w): an odd number of cells
    middle = cells[:, :, cells.shape[2] // 2, cells.shape[3] // 2]
    return _relative(middle, logits)


def with_proved_reach(net: nn.Module, grid: NetGrid, channels: int) -> NetGrid:
    """Check a net's derived receptive field by running it, and add what contradicts it to its global context.

    A cell of a net without global context depends only on the pixels of its derived receptive field, and not on their
    position in the image or the image's size. Both are checked: all other pixels are NaN, which passes through zero
    weights, activations and max pooling, first along the rows and then along the columns; and the cell is compared with
    the one that has the same pixels at another position in a larger image.

    Args:
        net: Maps (N, C, H, W) float to a map (N, K, h, w), or to a tuple of such, of which the first is computed from
            the others; in eval mode. A net on the meta device, which has no numbers, is not checked.
        grid: The net's grid, as derived from its graph.
        channels: Channels of the net's images, C.

    Returns:
        The same grid, with a phrase in its global context for what was found.
    """
    reference = next(net.parameters(), None)
    if grid.global_context or (reference is not None and reference.is_meta):
        return grid
    for axis in (0, 1):
        here, elsewhere = (_alone(net, grid, channels, axis, moved) for moved in (0, 1))
        if bool(here.isnan().any()):
            return replace(grid, global_context=("an operator whose reach is not known",))
        if not _relative(elsewhere, here) < _SAME:
            return replace(grid, global_context=("the place in the image, or the image's size",))
    return grid


def _alone(net: nn.Module, grid: NetGrid, channels: int, axis: int, moved: int) -> Tensor:
    """The values of a cell whose receptive field is noise, moved along an axis by some alignments; the rest is NaN."""
    seen, align = grid.maps[0].grid, grid.alignment[axis]
    along = (seen.y, seen.x)[axis]
    # Move by whole alignments, since cells of window attention see other windows at other offsets.
    cell = max(0, math.ceil(-along.first / align)) * align // along.stride
    first, last = int(along.first + along.stride * cell), int(along.last + along.stride * cell)
    size, field = list(grid.minimum), list(grid.minimum)
    size[axis] = max(size[axis], (last // align + 3) * align)  # not centred: the cell is not its own mirror image
    size[axis] += moved * align
    field[axis] = last + 1 - first
    reference = next(net.parameters())
    image = torch.full((1, channels, *size), math.nan, device=reference.device, dtype=reference.dtype)
    noise = _noise(net, 1, channels, (field[0], field[1]))
    image.narrow(2 + axis, first + moved * align, last + 1 - first).copy_(noise)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # Winograd kernels spread a NaN over their tile
        first_map = next(tensors_in((net(image),)))
    return first_map.select(2 + axis, int(cell + moved * align / along.stride))


def _relative_error(model: nn.Module, net: nn.Module, pooled_cells: tuple[int, int], images: Tensor) -> float:
    logits = _logits(model, images)
    try:
        with torch.no_grad():
            heatmap = net(images)
    except (RuntimeError, ValueError, IndexError) as error:  # PyTorch's errors for shapes that do not fit
        reason = one_line(error, 200)
        raise ArchitectureError(
            f"{type(model).__name__} has a layer behind its feature map that does not take a map ({reason}); choose"
            " another classifier"
        ) from error
    if tuple(heatmap.shape[2:]) != pooled_cells:
        return float("inf")
    return _relative(heatmap.mean((2, 3)), logits)


def _relative(answer: Tensor, logits: Tensor) -> float:
    tiny = torch.finfo(logits.dtype).tiny  # avoids 0 / 0 if all logits are zero
    return float((answer - logits).abs().max() / logits.abs().max().clamp(min=tiny))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the classifier's main output, if the net also returns auxiliary ones."""
    with torch.no_grad():
        output = model(images)
    logits = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        refuse_answer(list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__)
    return logits


def _noise(model: nn.Module, count: int, channels: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    reference = next(model.parameters())
    images = torch.randn(count, channels, *size, generator=generator)
    return images.to(reference.device, reference.dtype)


def _photographs(model: nn.Module, count: int, channels: int, size: tuple[int, int]) -> Tensor | None:
    images = photographs(count, size, channels)
    reference = next(model.parameters())
    return None if images is None else images.to(reference.device, reference.dtype)
