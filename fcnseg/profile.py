"""The cost of a frame, node by node: onnxruntime's profile of runs, matched with the optimised graph.

onnxruntime fuses, renames and reorders a file's nodes. So the session writes the graph as it runs, in the order of the
profile's events, and each event is matched with a node. The tail is what the class map needs in addition to the
heatmap, whatever operators it consists of; everything else is the net.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcnseg.errors import FcnsegError, ModelFileError, one_line
from fcnseg.graph import GraphNode, behind, that_see
from fcnseg.placement import node_runs, peak_bytes
from fcnseg.profiles import Event
from fcnseg.segmenter import Segmenter

Group = Literal[
    "convolutions",
    "matrix products",
    "normalisation and activation",
    "pooling",
    "casts",
    "copies and layouts",
    "shapes",
    "the rest",
    "upsampling to pixels",
    "arg-max",
    "confidence",
]

_COLD_RUNS = 3
_BRANCH = "If"
_SUFFIX = "_kernel_time"
_GROUPS: tuple[tuple[Group, frozenset[str]], ...] = (
    ("matrix products", frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "QLinearMatMul"})),
    (
        "normalisation and activation",
        frozenset(
            {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN"}
            | {"LpNormalization", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "Tanh"}
            | {"HardSigmoid", "HardSwish", "Softplus", "Softsign", "Softmax", "Gelu", "FastGelu", "BiasGelu"}
            | {"QuickGelu", "Mish", "Erf", "ThresholdedRelu"}
        ),
    ),
    ("casts", frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})),
    (
        "copies and layouts",
        frozenset(
            {"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost", "Transpose", "Reshape", "Flatten"}
            | {"Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Pad", "Gather", "Expand", "Tile", "Identity"}
        ),
    ),
    ("arg-max", frozenset({"ArgMax"})),
)


@dataclass(frozen=True)
class NodeCost:
    """The cost of a node in each run.

    Attributes:
        name: The node's name in onnxruntime.
        operator: The node's operator, such as `Conv`.
        provider: The execution provider that it ran on.
        group: The purpose of the node.
        tail: Whether it runs for the class map or the confidence, and not for the heatmap.
        shape: The shape of its first output.
        ms: Median of its time over the runs, without that of nodes within it.
        multiply_adds: Of a convolution or matrix product, including channels that onnxruntime adds to fill a block;
            None for other operators.
    """

    name: str
    operator: str
    provider: str
    group: Group
    tail: bool
    shape: tuple[int, ...]
    ms: float
    multiply_adds: int | None

    @property
    def gflops(self) -> float | None:
        """Billion floating-point operations per second, two for each multiply-add."""
        return 2e-6 * self.multiply_adds / self.ms if self.multiply_adds and self.ms else None


@dataclass(frozen=True)
class Profile:
    """The cost of a frame.

    Attributes:
        nodes: Every node that ran, in their order.
        runs: The number of runs of which medians were taken.
        profiled_ms: A run with the profiler on, including the time between nodes.
        run_ms: A run of the engine without the profiler.
        segment_ms: The whole of `Segmenter.segment_batch` on images in memory.
        peak_bytes: Peak memory of a run, including weights that lie in the arena; 0 without an arena.
    """

    nodes: tuple[NodeCost, ...]
    runs: int
    profiled_ms: float
    run_ms: float
    segment_ms: float
    peak_bytes: int

    @property
    def nodes_ms(self) -> float:
        """The sum of the nodes' times."""
        return sum(node.ms for node in self.nodes)

    @property
    def between_ms(self) -> float:
        """The time between nodes, including the profiler's own work."""
        return self.profiled_ms - self.nodes_ms

    @property
    def tail_share(self) -> float:
        """The tail's share of the nodes' time; 0 for a net that ends in its heatmap."""
        return sum(node.ms for node in self.nodes if node.tail) / self.nodes_ms if self.nodes_ms else 0.0

    @property
    def whole_over_net(self) -> float | None:
        """The time of all nodes over that of the net's; 1 for a net that ends in its heatmap, None without a net."""
        return 1 / (1 - self.tail_share) if self.tail_share < 1 else None

    def groups(self) -> dict[tuple[bool, Group], float]:
        """Milliseconds by (tail, group), the net first, then by descending time; their sum is `nodes_ms`."""
        sums: dict[tuple[bool, Group], float] = {}
        for node in self.nodes:
            sums[node.tail, node.group] = sums.get((node.tail, node.group), 0.0) + node.ms
        return dict(sorted(sums.items(), key=lambda item: (item[0][0], -item[1])))

    def as_json(self) -> dict[str, Any]:
        """Return the whole profile as a JSON object."""
        groups = [
            {"part": "tail" if tail else "net", "group": group, "ms": ms, "share": ms / self.nodes_ms}
            for (tail, group), ms in self.groups().items()
        ]
        names = ("nodes_ms", "between_ms", "tail_share", "whole_over_net")
        derived = {name: getattr(self, name) for name in names}
        nodes = [{**asdict(node), "gflops": node.gflops} for node in self.nodes]
        return {**asdict(self), **derived, "groups": groups, "nodes": nodes}


def profile(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]], runs: int, *, confidence: bool) -> Profile:
    """Run a model on a batch, with onnxruntime's profiler and without, and return where the time goes.

    Args:
        segmenter: The model.
        images: (H, W, 3) uint8 RGB images of one size, at least one.
        runs: Number of runs over which medians are taken, at least 1; a few more runs warm up.
        confidence: Whether to compute the confidence map too.

    Raises:
        ModelFileError: The model cannot be run on these images, or its profile does not fit its graph.
    """
    try:
        events, nodes = segmenter.engine.record(np.stack(images), _COLD_RUNS + runs, confidence=confidence)
        run_ms, segment_ms = _time(segmenter, images, runs, confidence=confidence)
    except FcnsegError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = one_line(error)
        size = "x".join(map(str, images[0].shape[:2]))
        raise ModelFileError(
            f"{segmenter.engine.path} cannot be run on {len(images)} images of {size}: {reason}; try a smaller size"
        ) from error
    warm = node_runs(events)[-runs:]
    whole = [int(event["dur"]) / 1000 for event in _whole_runs(events)[-runs:]]
    costs = read_costs(nodes, warm, segmenter.engine.path)
    return Profile(costs, runs, median(whole), run_ms, segment_ms, max(map(peak_bytes, warm)))


def read_costs(nodes: Sequence[GraphNode], runs: Sequence[Sequence[Event]], path: Path) -> tuple[NodeCost, ...]:
    """Compute the cost of each node.

    Args:
        nodes: The optimised graph that ran.
        runs: The node events of each run.
        path: The model file, for messages.

    Raises:
        ModelFileError: The events do not fit the graph.
    """
    placed = [_place(nodes, events, path) for events in runs]
    if len({tuple((position, event["name"]) for position, event in run) for run in placed}) != 1:
        raise ModelFileError(f"the runs of {path} differ from each other; export the model again")
    times = [_own_times(run) for run in placed]
    heatmap, class_map, pixels = behind(nodes, ["heatmap"]), behind(nodes, ["class_map"]), that_see(nodes, "image")
    tail = behind(nodes, ["class_map", "confidence"]) - heatmap
    costs = []
    for index, (position, event) in enumerate(placed[-1]):
        args = event["args"]
        operator, name = str(args["op_name"]), str(event["name"]).removesuffix(_SUFFIX)
        in_tail = position in tail
        group = _group(operator, in_tail=in_tail, sees_pixels=position in pixels)
        if in_tail and position not in class_map:
            group = "confidence"
        shape = (_shapes(args["output_type_shape"]) or [()])[0]
        ms = median(run[index] for run in times) / 1000
        products = _multiply_adds(operator, _shapes(args["input_type_shape"]), shape)
        costs.append(NodeCost(name, operator, str(args["provider"]), group, in_tail, shape, ms, products))
    return tuple(costs)


def _time(
    segmenter: Segmenter, images: Sequence[NDArray[np.uint8]], runs: int, *, confidence: bool
) -> tuple[float, float]:
    """Return the milliseconds of a run by itself and of the whole of `segment_batch`, measured alternately."""
    batch = np.stack(images)
    sides: tuple[Callable[[], object], ...] = (
        lambda: segmenter.engine.run(batch, confidence=confidence),
        lambda: segmenter.segment_batch(images, confidence=confidence),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_COLD_RUNS + runs):
        for side, taken in zip(sides, times, strict=True):
            began = time.perf_counter()
            side()
            taken.append((time.perf_counter() - began) * 1000)
    return median(times[0][_COLD_RUNS:]), median(times[1][_COLD_RUNS:])


def _whole_runs(events: Iterable[Event]) -> list[Event]:
    """Return the event of each run as a whole, in order."""
    return sorted((e for e in events if e.get("name") == "model_run"), key=lambda event: int(event["ts"]))


def _place(nodes: Sequence[GraphNode], events: Sequence[Event], path: Path) -> list[tuple[int, Event]]:
    """Return each event with the position of its node in the graph, or of the branch that contains the node."""
    placed: list[tuple[int, Event]] = []
    position = 0
    for event in events:
        if position < len(nodes) and _is_of(event, nodes[position]):
            placed.append((position, event))
            position += 1
        elif position < len(nodes) and nodes[position].operator == _BRANCH:
            placed.append((position, event))
        elif position and nodes[position - 1].operator == _BRANCH:
            placed.append((position - 1, event))
        else:
            break
    if position < len(nodes) or len(placed) < len(events):
        raise ModelFileError(
            f"the profile of {path} does not follow its graph at node {position} of {len(nodes)}; update onnxruntime"
        )
    return placed


def _is_of(event: Event, node: GraphNode) -> bool:
    named = not node.name or event["name"] == node.name + _SUFFIX
    return named and bool(event["args"]["op_name"] == node.operator)


def _own_times(placed: Sequence[tuple[int, Event]]) -> list[float]:
    """Return the microseconds of each event without those of the events inside it."""
    within: dict[int, int] = {}
    for position, event in placed:
        if event["args"]["op_name"] != _BRANCH:
            within[position] = within.get(position, 0) + int(event["dur"])
    own = []
    for position, event in placed:
        duration = int(event["dur"])
        inside = within.get(position, 0) if event["args"]["op_name"] == _BRANCH else 0
        own.append(float(max(0, duration - inside)))
    return own


def _group(operator: str, *, in_tail: bool, sees_pixels: bool) -> Group:
    if not in_tail and not sees_pixels:
        return "shapes"
    found = next((group for group, operators in _GROUPS if operator in operators), None)
    if in_tail:
        return found if sees_pixels and found in {"casts", "copies and layouts", "arg-max"} else "upsampling to pixels"
    if "Conv" in operator:
        return "convolutions"
    if "Pool" in operator:
        return "pooling"
    return found or "the rest"


def _shapes(tensors: Iterable[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for tensor in tensors for shape in tensor.values()]


def _multiply_adds(operator: str, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int | None:
    """Return the multiply-adds of a floating-point convolution or matrix product."""
    if operator in {"Conv", "FusedConv"}:
        return prod(output) * prod(inputs[1][1:])  # weights: (filters, channels of a group, h, w)
    if operator == "ConvTranspose":
        return prod(inputs[0]) * prod(inputs[1][1:])  # weights: (channels, filters of a group, h, w)
    if operator in {"MatMul", "FusedMatMul", "Gemm", "FusedGemm"} and len(inputs[0]) > 1 and len(output) > 1:
        summed = prod(inputs[0][-2:]) // max(1, output[-2])  # the summed dimension, transposed or not
        return prod(output) * summed
    return None
