"""Where each node of a graph ran, and the memory per pixel, read from onnxruntime's profile of runs.

A session's list of providers proves little: a node that the provider does not support silently runs on the CPU, and the
image is copied there and back. A profile has, for every node that ran, its provider and the shapes of its inputs and
outputs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnxruntime

from fcnseg.errors import DeviceError
from fcnseg.geometry import Geometry
from fcnseg.graph import SHAPE_READERS
from fcnseg.model_file import CELL_RESOLUTION_ABOVE
from fcnseg.profiles import Event, end_profiling
from fcnseg.types import Placement

_PROBE_SIDE = 128
_SCORE_BYTES, _CLASS_BYTES = 4, 16
"""Bytes of a pixel at a border between classes: a float for each class, and its class as int64 and uint8, before and
after blocks are joined."""


@dataclass(frozen=True)
class Probe:
    """The result of a few runs on small images.

    Attributes:
        placements: Which nodes ran where, by provider, operator and kind of data.
        bytes_per_pixel: Peak working memory of a run per pixel of the padded image.
        plain_bytes_per_pixel: The same for a run without confidences, on an image that consists of borders between
            classes only.
    """

    placements: tuple[Placement, ...]
    bytes_per_pixel: float
    plain_bytes_per_pixel: float


def probe(session: onnxruntime.InferenceSession, geometry: Geometry, model: Path) -> Probe:
    """Run a session that was opened with profiling five times, on sizes larger in each direction, and read its profile.

    Args:
        session: The session, with an arena; this ends its profiling.
        geometry: The model's geometry.
        model: The model file, for messages.

    Raises:
        ModelFileError: The profile could not be written.
    """
    padded_y, padded_x = geometry.y.padded(_PROBE_SIDE), geometry.x.padded(_PROBE_SIDE)
    height, width = geometry.canonical(_PROBE_SIDE, _PROBE_SIDE)
    sizes = [(height, width), (height + geometry.y.alignment, width), (height, width + geometry.x.alignment)]
    # On CUDA the branch is chosen when the file is opened.
    asked = {value.name: np.array(True) for value in session.get_overridable_initializers()}
    for _ in range(2):  # the branch without confidence; on CUDA onnxruntime plans its memory from the second run on
        session.run(None, {"image": np.zeros((1, height, width, 3), np.uint8)})
    for h, w in sizes:
        session.run(None, {"image": np.zeros((1, h, w, 3), np.uint8), **asked})
    runs = node_runs(end_profiling(session, model))
    pixels = [padded_y * padded_x] * 3
    pixels += [(padded_y + geometry.y.alignment) * padded_x, padded_y * (padded_x + geometry.x.alignment)]
    costs = [peak_bytes(nodes) / count for nodes, count in zip(runs, pixels, strict=True)]
    # The class map is computed at borders between classes, and images without content have none.
    classes = session.get_outputs()[1].shape[1]
    borders = classes * _SCORE_BYTES + _CLASS_BYTES if classes <= CELL_RESOLUTION_ABOVE else 0
    plain = max(costs[:2]) + borders
    return Probe(_read_placements(runs[1:]), max(*costs, plain), plain)


def require_device(placements: Iterable[Placement], provider: str, device: str) -> None:
    """Check that every node that processes data of the image's size ran on a provider.

    Raises:
        DeviceError: Some nodes ran elsewhere; the message names them.
    """
    elsewhere = [p for p in placements if p.image_sized and p.provider != provider]
    if elsewhere:
        named = ", ".join(f"{p.nodes} {p.operator} on {p.provider}" for p in elsewhere)
        raise DeviceError(
            f"device {device} does not run the whole model: {named} touch data of the image's size; update onnxruntime,"
            " or use --device cpu"
        )


def node_runs(events: Sequence[Event]) -> list[list[Event]]:
    """Return the node events of each run, in order; the event of the run itself marks its end."""
    runs: list[list[Event]] = []
    nodes: list[Event] = []
    for event in sorted(events, key=lambda event: int(event["ts"]) + int(event["dur"])):
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            nodes.append(event)
        elif event.get("name") == "model_run":
            runs.append(nodes)
            nodes = []
    return runs


def peak_bytes(events: Iterable[Event]) -> int:
    """Return the peak memory of a run in bytes, from its node events; 0 if its session has no arena."""
    return max((int(event["args"].get("mem_in_use_peak", 0)) for event in events), default=0)


def _read_placements(runs: Sequence[Sequence[Event]]) -> tuple[Placement, ...]:
    """Read where nodes ran in four runs: small without confidence, then small, higher and wider with it."""
    plain, small, higher, wider = map(_tensor_sizes, runs)
    counts: Counter[tuple[str, str, bool]] = Counter()
    for node, sizes in {**plain, **small}.items():
        grown = zip(sizes, higher.get(node, sizes), wider.get(node, sizes), strict=True)
        image_sized = node.operator not in SHAPE_READERS and any(
            high > size and wide > size for size, high, wide in grown
        )
        counts[node.provider, node.operator, image_sized] += 1
    return tuple(Placement(*key[:2], nodes, key[2]) for key, nodes in sorted(counts.items()))


@dataclass(frozen=True)
class _Node:
    """A node of a run; `number` distinguishes nodes with the same name."""

    provider: str
    operator: str
    name: str
    number: int


def _tensor_sizes(events: Iterable[Event]) -> dict[_Node, list[int]]:
    """Return the number of elements of every input and output of every node."""
    seen: Counter[str] = Counter()
    sizes = {}
    for event in events:
        args, name = event["args"], event["name"]
        tensors = (*args["input_type_shape"], *args["output_type_shape"])
        sizes[_Node(args["provider"], args["op_name"], name, seen[name])] = [
            prod(shape) for tensor in tensors for shape in tensor.values()
        ]
        seen[name] += 1
    return sizes
