"""Finds the classifier's tail: the layers between the last feature map and the logits.

Walking back from the output, the tail is a chain of Linear, activation, dropout and normalisation layers, a flatten,
and perhaps a pooling; its input is the feature map. After the pooling the chain may branch, and merge again in a sum.
The tail is recognised by what its nodes do to shapes at the native size, not by architecture.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, fx, nn

from fcnseg.errors import ArchitectureError
from training.refusal import refuse_answer
from training.tracing import blank_image, called_module, fake_tensors

_Role = Literal["linear", "pool", "flatten", "norm", "other"]
_REDUCTIONS = {"mean", "amax"}
_MERGES = {"add", "sub", "mul", "truediv"}
_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Tail:
    """The nodes of a classifier's tail, in forward order.

    Attributes:
        features: The node whose value is the last feature map, (N, C, H, W).
        feature_size: (H, W) of that map at the native size.
        pool: The pooling node, or None; its input is `features`, or a reshaped or partly reduced form of it.
        pools_maximum: Whether the pooling takes maxima instead of means.
        grid_size: (p, q) of the map that is flattened: the pooled grid, (1, 1) for global pooling.
        flatten: The nodes that remove the spatial axes.
        linears: The Linear layers.
        norms: Normalisation layers after the pooling.
        others: Activations, dropouts, 1x1 convolutions, which are not converted.
    """

    features: fx.Node
    feature_size: tuple[int, int]
    pool: fx.Node | None
    pools_maximum: bool
    grid_size: tuple[int, int]
    flatten: tuple[fx.Node, ...]
    linears: tuple[fx.Node, ...]
    norms: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...]

    def is_affine(self, traced: fx.GraphModule) -> bool:
        """Whether everything after the pooling is affine in eval mode, so that it commutes with averaging."""
        return all(_is_affine(traced, node) for node in (*self.norms, *self.others))


def _is_affine(traced: fx.GraphModule, node: fx.Node) -> bool:
    module, name = called_module(traced, node), _name(traced, node)
    if module is not None:
        return isinstance(module, (nn.Dropout, nn.Identity, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d))
    of_image = list(_tensor_inputs(node))
    operands = [operand in of_image for operand in node.args]
    scaled = {"mul": ([True, False], [False, True]), "truediv": ([True, False],)}
    return name in {"add", "sub"} or operands in scaled.get(name, ())


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        n.meta["value"] = None if isinstance(value, Tensor) else value  # such as a size that is passed on
        sources = n.all_input_nodes
        n.meta["constant"] = n.op == "get_attr" or (bool(sources) and all(i.meta["constant"] for i in sources))
        return value


def record_shapes(traced: fx.GraphModule, input_size: tuple[int, int], channels: int) -> None:
    """Run a traced net on a fake image and store the shape of every value in its node's `meta["shape"]`.

    Nodes whose value does not depend on the image have True in `meta["constant"]`.

    Raises:
        ArchitectureError: The net does not take images of that size.
    """
    try:
        with fake_tensors():
            _ShapeRecorder(traced).run(blank_image(traced, (1, channels, *input_size)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ArchitectureError(
            f"{type(traced).__name__} cannot be run on an image of {input_size[0]}x{input_size[1]} ({reason}); give its"
            " native size as input_size (--input-size)"
        ) from error


def put_channels_first(traced: fx.GraphModule) -> None:
    """Rewrite a mean or maximum over the spatial axes of (N, H, W, C), channels last, as one over (N, C, H, W)."""
    for node in list(traced.graph.nodes):
        sources = list(_tensor_inputs(node))
        if _name(traced, node) not in _REDUCTIONS or len(sources) != 1 or len(sources[0].meta["shape"]) != 4:
            continue
        (source,), kept = sources, node.meta["shape"]
        n, h, w, c = source.meta["shape"]
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if kept != (n, c) or not isinstance(axes, (tuple, list)) or sorted(axis % 4 for axis in axes) != [1, 2]:
            continue
        with traced.graph.inserting_before(node):
            moved = traced.graph.call_method("permute", (source, 0, 3, 1, 2))
        moved.meta = {"shape": (n, c, h, w), "value": None, "constant": False}
        node.args, node.kwargs = (moved, (2, 3)), {}


def find_tail(traced: fx.GraphModule) -> Tail:
    """Find the tail of a traced classifier whose shapes are recorded.

    Raises:
        ArchitectureError: The chain after the last feature map cannot become convolutional; the message shows it.
    """
    place = {node: i for i, node in enumerate(traced.graph.nodes)}
    found: dict[_Role, list[fx.Node]] = {role: [] for role in get_args(_Role)}
    seen: list[str] = []
    ahead = {_logits(traced)}  # nodes that visited ones are computed from, not visited yet
    while not found["pool"]:
        node = max(ahead, key=place.__getitem__)
        role = _role(traced, node)
        if role is None or (role == "pool" and len(ahead) > 1):
            break
        found[role].insert(0, node)
        seen.append(_describe(traced, node))
        ahead = {*ahead - {node}, *_tensor_inputs(node)}
    node = max(ahead, key=place.__getitem__)
    if found["pool"] and len(node.meta["shape"]) == 3:
        node = node.all_input_nodes[0]  # a mean or maximum in two steps
    shape = node.meta["shape"]
    if shape is None or len(shape) != 4 or len(ahead) > 1:
        chain = " <- ".join([*seen, _describe(traced, node)])
        raise ArchitectureError(
            f"no tail that can become convolutional: walking back from the logits gives {chain}, and no feature map"
            " (N, C, H, W) before it"
        )
    pool = found["pool"][0] if found["pool"] else None
    pooled = shape if pool is None else pool.meta["shape"]
    return Tail(
        features=node,
        feature_size=(shape[2], shape[3]),
        pool=pool,
        pools_maximum=pool is not None and "max" in _name(traced, pool).lower(),
        grid_size=(pooled[2], pooled[3]) if len(pooled) == 4 else (1, 1),
        flatten=tuple(found["flatten"]),
        linears=tuple(found["linear"]),
        norms=tuple(found["norm"]),
        others=tuple(found["other"]),
    )


def _role(traced: fx.GraphModule, node: fx.Node) -> _Role | None:
    """The role of a node in a tail; None if it belongs to the features before the tail."""
    sources = list(_tensor_inputs(node))
    if len(sources) != 1:
        merges = len(sources) > 1 and _name(traced, node) in _MERGES
        same = all(source.meta["shape"] == node.meta["shape"] for source in sources)
        return "other" if merges and same and len(node.meta["shape"]) == 2 else None
    (source,) = sources
    before, after = source.meta["shape"], node.meta["shape"]
    module = called_module(traced, node)
    role: _Role | None = None
    if isinstance(module, nn.Linear) and len(after) == 2:
        role = "linear"
    elif _is_pool(traced, node, before, after) or _is_second_reduction(traced, node, source):
        role = "pool"
    elif len(before) > len(after) and math.prod(before) == math.prod(after):
        role = "flatten"
    elif isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Identity)):
        role = "other"
    elif len(after) == 4 and (after[2:] != (1, 1) or before[2:] != (1, 1)):
        role = None
    elif isinstance(module, _NORMS):
        role = "norm"
    elif isinstance(module, nn.Conv2d) or math.prod(before) == math.prod(after):
        role = "other"
    return role


def _logits(traced: fx.GraphModule) -> fx.Node:
    value = traced.graph.output_node().args[0]
    if isinstance(value, (tuple, list)) and value:
        value = value[0]  # auxiliary heads follow the main one
    if not isinstance(value, fx.Node) or value.meta["shape"] is None:
        refuse_answer("no tensor")
    if len(value.meta["shape"]) != 2:
        refuse_answer(list(value.meta["shape"]))
    return value


def _tensor_inputs(node: fx.Node) -> Iterator[fx.Node]:
    return (n for n in node.all_input_nodes if n.meta.get("shape") is not None and not n.meta["constant"])


def _is_pool(traced: fx.GraphModule, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a node pools a map: to any grid if it is adaptive, else to a single cell."""
    if len(before) != 4 or before[:2] != after[:2] or (len(after) == 4 and after[2] > before[2]):
        return False
    name = _name(traced, node).lower()
    if "adaptive" in name and "pool2d" in name and len(after) == 4:
        return True
    if math.prod(after) != before[0] * before[1]:
        return False
    if name in {"avg_pool2d", "avgpool2d"}:
        return _covers(traced, node, before[2:])
    return name in _REDUCTIONS or ("pool" in name and "max" not in name)


def _covers(traced: fx.GraphModule, pool: fx.Node, size: tuple[int, ...]) -> bool:
    """Whether an average pooling covers a whole map of (h, w): a strided layer with one position on it does not."""
    module = called_module(traced, pool)
    if module is None:
        given = dict(zip(("input", "kernel_size", "stride", "padding"), pool.args, strict=False)) | pool.kwargs
        values: Any = fx.node.map_arg((given["kernel_size"], given.get("padding", 0)), lambda n: n.meta["value"])
    else:
        values = (module.kernel_size, module.padding)
    kernel, padding = ((v, v) if isinstance(v, int) else tuple(v) for v in values)
    return bool(kernel == size and padding == (0, 0))


def _is_second_reduction(traced: fx.GraphModule, node: fx.Node, source: fx.Node) -> bool:
    """Whether a node is the second of two reductions of a map, or reduces a map that was reshaped to (N, C, H * W)."""
    before, after = source.meta["shape"], node.meta["shape"]
    name, first = _name(traced, node), _name(traced, source)
    if name not in _REDUCTIONS or len(before) != 3 or after[:2] != before[:2] or first in _REDUCTIONS - {name}:
        return False
    inputs = [n.meta["shape"] for n in _tensor_inputs(source)]
    return len(after) == 2 and len(inputs) == 1 and len(inputs[0]) == 4 and inputs[0][:2] == before[:2]


def _name(traced: fx.GraphModule, node: fx.Node) -> str:
    """A layer's class, or a function's or method's name."""
    module = called_module(traced, node)
    return type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))


def _describe(traced: fx.GraphModule, node: fx.Node) -> str:
    name = _name(traced, node)
    return f"{name}({node.target})" if node.op == "call_module" else name
