"""Traces a classifier into a graph whose nodes are layers, in which every shape is static."""

import contextlib
import inspect
import logging
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from fcnseg.errors import ArchitectureError, one_line

_DROPOUTS = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Make new tensors fake (shapes without storage), for nets whose weights are real; failures are not logged."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with torch.inference_mode(mode=False), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.setLevel(level)


def blank_image(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised (N, C, H, W) image with the device and dtype of the net's weights."""
    weights = next(net.parameters(), None)
    return torch.empty(shape) if weights is None else torch.empty(shape, dtype=weights.dtype, device=weights.device)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the net inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


class LayerTracer(fx.Tracer):
    """Traces down to layers: modules without child modules that hold parameters, and window attentions.

    Layers keep their training behaviour (dropout, stochastic depth, batch statistics), which tracing through them in
    eval mode would freeze. If a forward branches on a value, such as a shape, the branch of the native size is taken:
    to find it, the graph up to there is run on a fake image.

    Args:
        image_shape: (N, C, H, W) of an image of the native size.
    """

    def __init__(self, image_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self._image_shape = image_shape
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Whether a module becomes one node of the graph."""
        if isinstance(m, ShiftedWindowAttention):
            return True
        return not any(next(child.parameters(), None) is not None for child in m.children())

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Take the branch of the native size."""
        return bool(self._value(obj.node))

    def iter(self, obj: Any) -> Iterator[Any]:
        """Iterate over as many entries as there are at the native size."""
        return (obj[i] for i in range(len(self._value(obj.node))))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a layer's call, or run the layer while a value is evaluated."""
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record a parameter's use, or return the parameter while a value is evaluated."""
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, wanted: fx.Node) -> Any:
        """A node's value for a fake image of the native size."""
        self._evaluating = True
        try:
            with self._fake, torch.no_grad():
                for node in wanted.graph.nodes:
                    if node not in self._values:
                        self._values[node] = self._run(node)
                    if node is wanted:
                        break
        finally:
            self._evaluating = False
        return self._values[wanted]

    def _run(self, node: fx.Node) -> Any:
        args: Any = fx.node.map_arg(node.args, self._values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._values.__getitem__)
        if node.op == "placeholder":
            return blank_image(self.root, self._image_shape)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)


def trace_layers(model: nn.Module, image_shape: tuple[int, int, int, int]) -> fx.GraphModule:
    """Trace a classifier in eval mode into a graph of layers that shares its modules.

    Args:
        model: The classifier.
        image_shape: (N, C, H, W) of an image of the native size.

    Raises:
        ArchitectureError: torch.fx cannot trace it.
    """
    try:
        graph = LayerTracer(image_shape).trace(model, _defaults(model))
    except Exception as error:  # whatever a foreign forward raises on proxies
        reason = one_line(error, 200)
        raise ArchitectureError(
            f"{type(model).__name__} cannot be traced by torch.fx ({reason}); its forward must not branch on values,"
            " nor make Python numbers of them"
        ) from error
    _take_image_alone(graph)
    _take_maxima_alone(graph)
    _follow_changes_in_place(model, graph)
    traced = fx.GraphModule(model, graph, class_name=type(model).__name__)
    _drop_in_training(traced)
    return traced


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Return the defaults of a forward's arguments after the image."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[2:]  # behind self and the image
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _take_image_alone(graph: fx.Graph) -> None:
    """Remove the inputs that tracing has fixed at their defaults, and the nodes that compare them with these."""
    others = [node for node in graph.nodes if node.op == "placeholder"][1:]
    checks: dict[fx.Node, None] = {}
    pending = [user for node in others for user in node.users]
    while pending:
        node = pending.pop()
        checks[node] = None
        pending += node.users
    for node in reversed(list(graph.nodes)):
        if node in checks or node in others:
            graph.erase_node(node)


def _take_maxima_alone(graph: fx.Graph) -> None:
    """Replace a maximum along an axis whose indices are not used by amax, which returns one value instead of a pair."""
    for node in list(graph.nodes):
        if node.target not in {torch.max, "max"} or not isinstance(axis := _argument_of(node, 1, "dim"), int):
            continue
        if not all(_takes_values(user) for user in node.users):
            continue
        arguments = (
            node.args[0] if node.args else node.kwargs["input"],
            axis,
            _argument_of(node, 2, "keepdim") or False,
        )
        with graph.inserting_before(node):
            values = graph.call_function(torch.amax, arguments)
        values.meta = dict(node.meta)
        for user in list(node.users):
            user.replace_all_uses_with(values)
            graph.erase_node(user)
        graph.erase_node(node)


def _follow_changes_in_place(model: nn.Module, graph: fx.Graph) -> None:
    """If a value is changed in place and the result is not used, make later users of the value use the result.

    Otherwise the graph would drop such a node as unused, for example that of `x.mul_(2)` as a statement.
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node, at in place.items():
        if not node.users and _changes_in_place(model, node):
            changed = node.args[0]
            for user in [user for user in changed.users if place[user] > at]:
                user.replace_input_with(changed, node)


def _drop_in_training(traced: fx.GraphModule) -> None:
    """Replace functional dropouts by layers, since tracing in eval mode has frozen them as inactive."""
    for node in list(traced.graph.nodes):
        layer, p = _DROPOUTS.get(node.target), node.kwargs.get("p")
        if layer is None or node.kwargs["training"] is not False or not isinstance(p, (int, float)):
            continue
        name = f"functional_{node.name}"
        traced.add_submodule(name, layer(p).eval())
        with traced.graph.inserting_before(node):
            dropped = traced.graph.call_module(name, node.args)
        dropped.meta = dict(node.meta)
        node.replace_all_uses_with(dropped)
        traced.graph.erase_node(node)
    traced.recompile()


def _changes_in_place(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node changes its first argument and returns it."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function" and bool(node.kwargs.get("inplace", False)):
        return True
    name = getattr(node.target, "__name__", str(node.target))
    return node.op in {"call_function", "call_method"} and name.endswith("_") and not name.endswith("__")


def _argument_of(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _takes_values(user: fx.Node) -> bool:
    """Whether a node takes only the values from a pair of values and indices."""
    return user.target in {operator.getitem, getattr} and user.args[1] in (0, "values")


def input_channels(model: nn.Module, input_size: tuple[int, int]) -> int:
    """Return the channels of the image that a net takes: those of its first convolution, if it accepts such an image.

    If it does not, because it folds blocks of pixels into channels first, or because its first convolution in order of
    definition is not the one that reads the image, the net takes RGB or grey.

    Args:
        model: A net in eval mode; it is not changed.
        input_size: (height, width) at which it works.

    Raises:
        ArchitectureError: It has no convolution.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ArchitectureError(
            f"{type(model).__name__} has no convolution, so there is nothing to slide over an image"
        )
    channels = first.in_channels
    candidates = () if channels == 3 else (channels, 3, 1)
    return next((c for c in candidates if _takes(model, (1, c, *input_size))), channels)


def _takes(model: nn.Module, image_shape: tuple[int, int, int, int]) -> bool:
    try:
        with fake_tensors():
            model(blank_image(model, image_shape))
    except (RuntimeError, ValueError):  # what PyTorch raises where shapes do not fit
        return False
    return True


def called_module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls; None if it calls a function or method."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None
