"""The layer table of a dense net, read from its graph."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fcnseg.layers import Kind, Layer
from training.fcn import FCN
from training.grid import Grid
from training.grid_tracer import record_grids

_ACTIVATIONS = {name.lower() for name in nn.modules.activation.__all__}
_REDUCTIONS = {"mean", "amax", "sum"}
_FIRST_FUNCTION_ARGUMENTS = ("input", "kernel_size", "stride")


class _Step(NamedTuple):
    """What a node of the graph does, in the terms of `Layer`."""

    kind: Kind
    operation: str
    was: str | None = None


def derive_layers(net: nn.Module) -> tuple[Layer, ...]:
    """Derive the layer table of a dense net from its graph, without computing activations.

    Operations without parameters that neither pool nor normalise nor activate (sums, dropout, reshaping) are left out.

    Args:
        net: A dense net made by the conversion of a classifier, or an FCN over one.

    Returns:
        The layers in the order in which they run, the score layers of an FCN last.
    """
    trunk = net.trunk if isinstance(net, FCN) else net
    if not isinstance(trunk, fx.GraphModule):
        raise TypeError(f"a {type(net).__name__} is no converted classifier or FCN, so its layers cannot be listed")
    shapes = _map_shapes(trunk)
    counted: set[nn.Parameter] = set()
    layers = []
    for node in trunk.graph.nodes:
        step = _step(trunk, node)
        if step is not None:
            parameters = _count_fresh(_parameters(trunk, node), counted)
            layers.append(_layer(_name(node), step, shapes[node], node.meta["grid"], parameters))
    if isinstance(net, FCN):
        taps: Any = trunk.graph.output_node().args[0]
        scores = [module for module in net.scores if isinstance(module, nn.Conv2d)]
        for index, (tap, score) in enumerate(zip(taps, scores, strict=True)):
            step, shape = _Step("conv", _convolution(score)), (score.out_channels, *shapes[tap][1:])
            parameters = _count_fresh(score.parameters(), counted)
            layers.append(_layer(f"scores.{index}", step, shape, tap.meta["grid"], parameters))
    return tuple(layers)


def _map_shapes(trunk: fx.GraphModule) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of each value at the native size, (C, h, w) for maps; its grid is stored in the node's meta."""
    image = next(n for n in trunk.graph.nodes if n.op == "placeholder")
    _, channels, height, width = image.meta["shape"]  # the native size, as the conversion recorded it
    align = record_grids(trunk, (height, width), channels).alignment
    shapes: dict[fx.Node, tuple[int, ...]] = {n: n.meta["dense_shape"] or () for n in trunk.graph.nodes}
    larger = shapes
    if any(len(shape) == 4 and shape[2] != shape[3] for shape in shapes.values()):
        # A map is not square, or its channels come last: find the spatial axes as those that grow with the image.
        record_grids(trunk, (height + align[0], width + align[1]), channels)
        larger = {n: n.meta["dense_shape"] or () for n in trunk.graph.nodes}
    return {n: _map_shape(n, shape, larger[n]) for n, shape in shapes.items()}


def _map_shape(node: fx.Node, shape: tuple[int, ...], larger: tuple[int, ...]) -> tuple[int, ...]:
    if node.op == "get_attr":
        return shape
    grows = [a != b for a, b in zip(shape, larger, strict=True)]
    return (shape[3], *shape[1:3]) if grows == [False, True, True, False] else shape[1:]


def _layer(name: str, step: _Step, shape: tuple[int, ...], grid: Grid | None, parameters: int) -> Layer:
    stride = None
    if grid is not None and grid.y.stride.denominator == grid.x.stride.denominator == 1:
        stride = (int(grid.y.stride), int(grid.x.stride))
    return Layer(
        name=name,
        kind=step.kind,
        operation=step.operation,
        was=step.was,
        shape=shape,
        stride=stride,
        receptive_field=None if grid is None else (grid.y.field, grid.x.field),
        parameters=parameters,
    )


def _name(node: fx.Node) -> str:
    """Return the path of a module or parameter; for a function, the path of the calling module and its name."""
    if node.op in {"call_module", "get_attr"}:
        return str(node.target)
    callers = list(node.meta.get("nn_module_stack") or {"": None})
    return f"{callers[-1]}.{_function(node)}()".removeprefix(".")


def _function(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def _parameters(trunk: fx.GraphModule, node: fx.Node) -> Iterable[nn.Parameter]:
    if node.op == "call_module":
        return trunk.get_submodule(str(node.target)).parameters()
    value = attrgetter(str(node.target))(trunk) if node.op == "get_attr" else None
    return [value] if isinstance(value, nn.Parameter) else []


def _count_fresh(parameters: Iterable[nn.Parameter], counted: set[nn.Parameter]) -> int:
    """Return the number of elements of the parameters that are not counted yet, and mark them as counted."""
    fresh = set(parameters) - counted
    counted |= fresh
    return sum(parameter.numel() for parameter in fresh)


def _step(trunk: fx.GraphModule, node: fx.Node) -> _Step | None:
    """What a node does; None if it does not appear in the table."""
    if node.op == "call_module":
        module = trunk.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d) and len(node.meta.get("shape") or ()) == 2:
            return _converted(module)  # a vector in the classifier, hence a converted Linear layer
        return _module_step(module, is_global=_pools_globally(node))
    if node.op in {"call_function", "call_method"}:
        return _function_step(node)
    if node.op == "get_attr" and isinstance(attrgetter(str(node.target))(trunk), nn.Parameter):
        return _Step("other", "parameter")
    return None


def _converted(conv: nn.Conv2d) -> _Step:
    p, q = conv.kernel_size
    filters = f"{conv.out_channels} filters of {conv.in_channels}x{p}x{q}"
    return _Step("fc", filters, f"Linear {conv.in_channels * p * q} -> {conv.out_channels}")


def _module_step(module: nn.Module, *, is_global: bool) -> _Step | None:
    classes = [cls.__name__ for cls in type(module).__mro__]
    name = classes[0]
    step: _Step | None = None
    if isinstance(module, _ConvNd):
        step = _Step("conv", _convolution(module))
    elif isinstance(module, nn.Linear):
        step = _Step("conv", "1x1 (Linear at every cell)")
    elif any("Norm" in cls for cls in classes):
        step = _Step("norm", name)
    elif any("Pool" in cls for cls in classes):
        window = None if is_global else getattr(module, "kernel_size", None)
        step = _Step("pool", _pooling(name, window, getattr(module, "stride", None)))
    elif any(cls.lower() in _ACTIVATIONS for cls in classes) or ".activations" in type(module).__module__:
        step = _Step("activation", name)
    elif next(module.parameters(), None) is not None:
        return _Step("other", name)
    inner = [s for child in module.children() if (s := _module_step(child, is_global=is_global)) is not None]
    steps = ([] if step is None else [step]) + inner  # such as a normalisation that contains its activation
    return _Step(steps[0].kind, " + ".join(s.operation for s in steps)) if steps else None


def _function_step(node: fx.Node) -> _Step | None:
    name = _function(node)
    if name.startswith("conv"):
        return _Step("conv", name)
    if "norm" in name:
        return _Step("norm", name)
    if "pool" in name or (name in _REDUCTIONS and _pools_globally(node)):
        given = dict(zip(_FIRST_FUNCTION_ARGUMENTS, node.args, strict=False)) | node.kwargs
        window = None if _pools_globally(node) or "adaptive" in name else given.get("kernel_size")
        return _Step("pool", _pooling(name, window, given.get("stride")))
    if name.replace("_", "") in _ACTIVATIONS:
        return _Step("activation", name)
    return None


def _pools_globally(node: fx.Node) -> bool:
    """Whether a node's input is a map and its output has no spatial axes."""
    inputs = [n.meta.get("grid") for n in node.all_input_nodes]
    return node.meta["grid"] is None and any(grid is not None for grid in inputs)


def _convolution(conv: _ConvNd) -> str:
    words = [_size(conv.kernel_size)]
    if isinstance(conv, _ConvTransposeNd):
        words[0] += " transposed"
    if conv.groups > 1:
        is_depthwise = conv.groups == conv.in_channels
        words[0] += " depthwise" if is_depthwise else ""
        words += [] if is_depthwise else [f"{conv.groups} groups"]
    words += [f"stride {_short(conv.stride)}"] if set(conv.stride) != {1} else []
    words += [f"dilation {_short(conv.dilation)}"] if set(conv.dilation) != {1} else []
    return ", ".join(words)


def _pooling(name: str, window: Any, stride: Any) -> str:
    reduction = "max" if "max" in name.lower() else "sum" if name == "sum" else "mean"
    if window is None:
        return f"{reduction} of the whole map"
    return f"{_size(window)} {reduction}, stride {_short(stride or window)}"


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else f"{value}x{value}"


def _short(value: Any) -> str:
    """A size, as one number if its axes are equal."""
    is_square = isinstance(value, (tuple, list)) and len(set(value)) == 1
    return str(value[0]) if is_square else _size(value) if isinstance(value, (tuple, list)) else str(value)
