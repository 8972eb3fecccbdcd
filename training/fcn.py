"""Fully convolutional networks: a dense classifier whose scores are refined by skip connections from finer layers.

FCN-32s scores the last feature map; FCN-16s adds scores of the last map at half its stride, FCN-8s also those at a
quarter (Long, Shelhamer, Darrell, arXiv 1411.4038, section 4.2). Skip points are found in the graph, and scores are
resampled to the finer map's own lattice, whose offset depends on the backbone's padding.
"""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

from torch import Tensor, fx, nn

from fcnseg.errors import ArchitectureError, UsageError
from training.config import TailChoice, Upsampling, Variant
from training.conversion import Trunk, dense_trunk, prepared_copy
from training.grid import Grid, Lattice, lattices
from training.grid_tracer import record_grids
from training.net_grid import NetGrid, derive_net_grid
from training.proof import with_proved_reach
from training.resample import resample
from training.tracing import input_channels
from training.upsampling import LearnedUpsampling


@dataclass(frozen=True)
class _Tap:
    """A feature map that an FCN scores."""

    node: fx.Node
    channels: int
    grid: Grid

    @property
    def lattice(self) -> tuple[Lattice, Lattice]:
        return lattices(self.grid)


class FCN(nn.Module):
    """An FCN over a dense trunk; `forward` maps (N, C, H, W) float to (N, K, h, w) scores.

    Score layers are initialised to zero, so that a skip adds nothing until it has been trained.

    Args:
        trunk: A module that returns the feature maps of the taps.
        taps: The maps to score, the coarsest first.
        num_classes: Number of classes to score, K.
        native: (height, width) at which the trunk is known to work.
        upsampling: How scores are upsampled from one map to the next finer one.
        skip_scale: Factor for the first skip's features; the second skip's factor is its square.

    Attributes:
        net_grid: The grid of the scores, and how their size follows from the image's.
    """

    def __init__(
        self,
        trunk: fx.GraphModule,
        taps: list[_Tap],
        num_classes: int,
        native: tuple[int, int],
        upsampling: Upsampling,
        skip_scale: float,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.scores = nn.ModuleList(_score_layer(tap.channels, num_classes) for tap in taps)
        self._lattices = [tap.lattice for tap in taps]
        self._skip_scale = skip_scale
        self.upscores = nn.ModuleList(
            LearnedUpsampling(num_classes, coarse, fine)
            for coarse, fine in pairwise(self._lattices if upsampling == "learned" else [])
        )
        for new in (self.scores, self.upscores):
            new.to(next(trunk.parameters()))  # device and dtype of the trunk
        channels = input_channels(trunk, native)
        proved = with_proved_reach(trunk, derive_net_grid(trunk, native, channels), channels)
        self.net_grid = _net_grid(proved, taps, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Score an image.

        Args:
            image: (N, C, H, W) normalised float, H and W multiples of the net's alignment.

        Returns:
            (N, K, h, w) scores.
        """
        coarse, *finer = self.trunk(image)
        scores: Tensor = self.scores[0](coarse)
        for index, features in enumerate(finer):
            if self._skip_scale != 1:
                features = features * self._skip_scale ** (index + 1)  # noqa: PLW2901
            skip = self.scores[index + 1](features)
            scores = skip + self._refine(scores, index, (skip.shape[2], skip.shape[3]))
        return scores

    def _refine(self, scores: Tensor, index: int, size: tuple[int, int]) -> Tensor:
        """Upsample the scores of map `index` to the next finer map."""
        if self.upscores:
            refined: Tensor = self.upscores[index](scores, size)
            return refined
        return resample(scores, self._lattices[index], self._lattices[index + 1], size)


def build_fcn(
    classifier: nn.Module,
    variant: Variant,
    num_classes: int,
    input_size: tuple[int, int],
    *,
    tail: TailChoice = "auto",
    upsampling: Upsampling = "bilinear",
    skip_scale: float = 1.0,
) -> FCN:
    """Build an FCN from a classifier: the classifier's trunk with its weights, and new score layers.

    Args:
        classifier: Maps (N, C, H, W) to (N, K) logits; it is not changed.
        variant: fcn32s, fcn16s or fcn8s: the stride of the scores.
        num_classes: Number of classes to score.
        input_size: Native (height, width) of the classifier.
        tail: Whether the coarsest scores are computed from the classifier's fully connected layers (`fc`), its last
            feature map (`gap`), or the input of its last layer (`auto`).
        upsampling: How scores are upsampled from one map to the next finer one.
        skip_scale: Factor for the first skip's features before they are scored; the second skip's factor is its square.

    Raises:
        ArchitectureError: The classifier cannot become convolutional, or has no feature map at a skip's stride.
        UsageError: The classifier's stride is finer than the variant's or not a multiple of it, or it has no such tail.
    """
    model = copy.deepcopy(prepared_copy(classifier, input_size))
    trunk = dense_trunk(model, input_size, "cam")
    coarse, finer = _taps(trunk, _scored_node(trunk, tail), variant, input_size, input_channels(model, input_size))
    taps = [coarse, *finer]
    graph = trunk.net.graph
    graph.output_node().args = (tuple(tap.node for tap in taps),)
    graph.eliminate_dead_code()
    trunk.net.recompile()
    trunk.net.delete_all_unused_submodules()
    return FCN(trunk.net, taps, num_classes, input_size, upsampling, skip_scale)


def _scored_node(trunk: Trunk, tail: TailChoice) -> fx.Node:
    """Return the node from which the coarsest scores are computed."""
    if tail == "gap":
        return trunk.features
    if tail == "fc" and len(trunk.linears) < 2:
        raise UsageError(
            "tail fc needs fully connected layers before the classifier's last, as in VGG and AlexNet; this net has"
            " none: take tail gap"
        )
    return trunk.hidden


def _net_grid(trunk: NetGrid, taps: list[_Tap], num_classes: int) -> NetGrid:
    """Return the grid of the fused scores: the finest map's cells, with the joined receptive fields of all maps."""
    grid = taps[0].grid
    for tap in taps[1:]:
        (y, x) = tap.lattice
        coarse = Grid(grid.y.resampled(y.offset, y.stride), grid.x.resampled(x.offset, x.stride))
        grid = tap.grid.joined(coarse)
    return replace(trunk, grid=grid, channels=num_classes)


def _score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _taps(
    trunk: Trunk, scored: fx.Node, variant: Variant, input_size: tuple[int, int], channels: int
) -> tuple[_Tap, list[_Tap]]:
    record_grids(trunk.net, input_size, channels)
    coarse = _tap(scored)
    wanted = _stride_of(variant)
    stride = coarse.lattice[0].stride
    if stride < wanted or stride % wanted:
        fitting = [name for name in get_args(Variant) if stride % _stride_of(name) == 0]
        remedy = f"use {' or '.join(fitting)}" if fitting else "take a classifier with a stride of 8, 16 or 32"
        raise UsageError(f"{variant} scores at stride {wanted}, but this net's own stride is {stride}; {remedy}")
    finer = []
    while stride > wanted:
        stride //= 2
        finer.append(_tap(_last_map_at(trunk, stride)))
    return coarse, finer


def _stride_of(variant: Variant) -> int:
    return int(variant.removeprefix("fcn").removesuffix("s"))


def _tap(node: fx.Node) -> _Tap:
    grid: Grid | None = node.meta["grid"]
    shape: tuple[int, ...] | None = node.meta["dense_shape"]
    if grid is None or shape is None or len(shape) != 4:
        raise ArchitectureError(f"the value of {node.name} is no feature map with a grid, so it cannot be scored")
    return _Tap(node, shape[1], grid)


def _last_map_at(trunk: Trunk, stride: int) -> fx.Node:
    """Return the last feature map at a stride from which all later values are computed.

    A node qualifies if no value computed before it is used after it, which excludes the insides of residual and dense
    blocks.
    """
    nodes = list(trunk.net.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    furthest_use = -1
    found: fx.Node | None = None
    for i, node in enumerate(nodes):
        grid: Grid | None = node.meta.get("grid")
        if furthest_use <= i and grid is not None and grid.y.stride == grid.x.stride == stride:
            found = node
        if node.op != "get_attr":
            furthest_use = max([furthest_use, *(position[user] for user in node.users)])
        if node is trunk.features:
            break
    if found is None:
        raise ArchitectureError(f"the net has no feature map at stride {stride} for a skip; use a coarser variant")
    return found
