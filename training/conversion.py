"""Converts a classifier to a net that outputs a heatmap: its fully connected layers become convolutions.

A Linear layer over a flattened (C, p, q) grid is a p x q convolution whose filters are the layer's rows reshaped to
(C, p, q); the Linear layers behind it are 1x1 convolutions (Long, Shelhamer, Darrell, arXiv 1411.4038, section 3.1).
The conversion edits a torch.fx graph, not the modules, so that parameters keep their names.
"""

import copy
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models.convnext import LayerNorm2d

from fcnseg.certificate import Certificate, Identity
from fcnseg.errors import ArchitectureError, ParityError
from training.net_grid import derive_net_grid
from training.proof import measure_border_effect, measure_errors, with_proved_reach
from training.refusal import refuse_coarse_weights, refuse_scripts, refuse_transformers
from training.reparametrised import fix_weights
from training.same_padding import fix_same_padding
from training.tail import Tail, find_tail, put_channels_first, record_shapes
from training.tracing import called_module, input_channels, trace_layers, unwrapped

Rule = Literal["auto", "cam", "window"]
TOLERANCE = 1e-5


class Conversion(NamedTuple):
    """A heatmap net with its proof.

    Attributes:
        net: Maps (N, C, H, W) float to (N, K, h, w) float; in eval mode.
        certificate: What was proved.
    """

    net: fx.GraphModule
    certificate: Certificate


class Trunk(NamedTuple):
    """A classifier as a dense net, cut open before its last layer.

    Attributes:
        net: Maps (N, C, H, W) to scores; FCNs are built from its graph.
        identity: How global pooling was converted.
        features: The node of the last feature map.
        hidden: The node that the score layer reads.
        linears: The nodes that were Linear layers, the last of which scores; none in SqueezeNet.
        pooled_cells: (y, x) cells that the classifier averages and the dense net does not; (1, 1) under the window
            rule.
    """

    net: fx.GraphModule
    identity: Identity
    features: fx.Node
    hidden: fx.Node
    linears: tuple[fx.Node, ...]
    pooled_cells: tuple[int, int]


class RMSNorm2d(nn.RMSNorm):
    """The RMS normalisation of the channels of every cell of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.inference_mode(mode=False)  # in inference mode, shapes cannot be followed
def convolutionalize(model: nn.Module, input_size: tuple[int, int] = (224, 224), rule: Rule = "auto") -> Conversion:
    """Convert a convolutional classifier to a heatmap net, and prove that it computes the same.

    Args:
        model: Maps (N, C, H, W) float to (N, K) logits; it is not changed.
        input_size: Native (height, width): the size that the classifier was made for.
        rule: For nets with global average pooling, `cam` drops the pooling and `window` makes it a stride-1 window of
            its native size. `auto` takes cam if all that follows the pooling is affine, else window.

    Raises:
        ArchitectureError: The net is not a convolutional classifier whose tail can be converted.
        ParityError: The identity does not hold with a relative error below 1e-5.
    """
    model = unwrapped(model)
    refuse_coarse_weights(model)
    trunk = dense_trunk(prepared_copy(model, input_size), input_size, rule)
    reference = _sharing_copy(model)
    errors = measure_errors(reference, trunk.net, trunk.pooled_cells, input_size)
    channels = input_channels(reference, input_size)
    grid = with_proved_reach(trunk.net, derive_net_grid(trunk.net, input_size, channels), channels)
    border_effect = measure_border_effect(reference, trunk.net, trunk.pooled_cells, input_size, grid.alignment)
    found = {"images of noise": errors.noise, "photographs": errors.photographs}
    shows_crops = not grid.padded and not grid.global_context
    if shows_crops:
        found["crops of a larger image, without padding in the net,"] = border_effect
    for images, error in found.items():
        if error is not None and not error < TOLERANCE:  # NaN fails too
            raise ParityError(
                f"the converted {type(model).__name__} does not compute its classifier at"
                f" {input_size[0]}x{input_size[1]} (rule {trunk.identity}: relative error {error:.1e} on {images} must"
                f" be below {TOLERANCE:.0e}); is that its native size?"
                + (" Rule window may hold" if rule == "cam" else "")
            )
    y, x = grid.maps[-1].lattice
    linears = [trunk.net.get_submodule(str(node.target)) for node in trunk.linears]
    certificate = Certificate(
        identity=trunk.identity,
        relative_error=errors.noise,
        photo_error=errors.photographs,
        border_effect=0.0 if shows_crops else border_effect,
        tolerance=TOLERANCE,
        input_size=input_size,
        output_stride=(y.stride, x.stride),
        offset=(y.offset, x.offset),
        alignment=grid.alignment,
        receptive_field=(grid.grid.y.field, grid.grid.x.field),
        global_context=grid.global_context,
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(trunk.net),
        fc_parameters=count_parameters(nn.ModuleList(linears)),
    )
    return Conversion(copy.deepcopy(trunk.net), certificate)


def prepared_copy(model: nn.Module, input_size: tuple[int, int]) -> nn.Module:
    """Copy a classifier in eval mode, with plain weights and with padding that does not depend on the image's size.

    It shares the classifier's parameters and buffers.

    Raises:
        ArchitectureError: The classifier is a transformer, or TorchScript.
    """
    model = unwrapped(model)
    refuse_transformers(model)
    refuse_scripts(model)
    copied = _sharing_copy(model)
    fix_weights(copied)
    fix_same_padding(copied, input_size)
    return copied


def dense_trunk(model: nn.Module, input_size: tuple[int, int], rule: Rule) -> Trunk:
    """Make a classifier dense by one rule, without proof.

    Args:
        model: The classifier, in eval mode and with static padding; it is not changed, and shares its parameters with
            the result.
        input_size: Native (height, width).
        rule: As for `convolutionalize`.

    Raises:
        ArchitectureError: The tail cannot be converted.
    """
    channels = input_channels(model, input_size)
    traced = trace_layers(model, (1, channels, *input_size))
    record_shapes(traced, input_size, channels)
    put_channels_first(traced)
    tail = find_tail(traced)
    pools_globally = tail.grid_size == (1, 1) != tail.feature_size
    identity = _resolve(rule, pools_globally=pools_globally, averages=tail.is_affine(traced) and not tail.pools_maximum)
    _replace_pool(traced, tail, identity)
    for node in tail.flatten:
        node.replace_all_uses_with(node.all_input_nodes[0])
    _convolve(traced, tail)
    for module in traced.modules():
        if isinstance(module, _DropoutNd):
            # With the pooling gone, dropout may directly follow an activation whose gradient needs its own output.
            module.inplace = False
    for node in tail.norms:
        _require_channels(traced, node, tail)
        traced.set_submodule(str(node.target), _channelwise(traced.get_submodule(str(node.target))))
    for node in tail.others:
        other = called_module(traced, node)
        if isinstance(other, (nn.Softmax, nn.LogSoftmax)):
            traced.set_submodule(str(node.target), type(other)(dim=1))  # it may have been the last axis
        elif other is None:
            _take_channels(node)
            _spread_constants(traced, node)
    output: Any = traced.graph.output_node()
    if isinstance(output.args[0], (tuple, list)):
        output.args = (output.args[0][0],)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    hidden = tail.linears[-1].all_input_nodes[0] if tail.linears else output.args[0]
    pooled_cells = tail.feature_size if pools_globally and identity == "cam" else (1, 1)
    return Trunk(traced, identity, tail.features, hidden, tail.linears, pooled_cells)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares parameters and buffers, so that a large net is not held twice."""
    computed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers(), *computed)}).eval()


def _resolve(rule: Rule, *, pools_globally: bool, averages: bool) -> Identity:
    if not pools_globally:
        return "window"
    if rule == "auto":
        return "cam" if averages else "window"
    return rule


def _replace_pool(traced: fx.GraphModule, tail: Tail, identity: Identity) -> None:
    if tail.pool is None:
        return
    (height, width), (p, q) = tail.feature_size, tail.grid_size
    if height % p or width % q:
        raise ArchitectureError(
            f"the tail pools a {height}x{width} map to {p}x{q} cells, which no window of a fixed size can do; convert"
            " at a native size whose map is a multiple of the pooled grid"
        )
    source = tail.features
    if (height, width) == (p, q) or ((p, q) == (1, 1) and identity == "cam"):
        tail.pool.replace_all_uses_with(source)
        return
    kernel = (height // p, width // q)
    # The window of a single cell slides by one; those of several cells must stay apart by their size.
    stride = (1 if p == 1 else kernel[0], 1 if q == 1 else kernel[1])
    pooling = nn.MaxPool2d if tail.pools_maximum else nn.AvgPool2d
    traced.add_submodule("window", pooling(kernel, stride))
    with traced.graph.inserting_after(tail.pool):
        window = traced.graph.call_module("window", (source,))
    tail.pool.replace_all_uses_with(window)


def _convolve(traced: fx.GraphModule, tail: Tail) -> None:
    """Replace the tail's Linear layers by convolutions; a layer that is also called elsewhere is kept besides."""
    linears: list[Any] = [called_module(traced, node) for node in tail.linears]
    taken = {node.target for node in traced.graph.nodes if node.op == "call_module" and node not in tail.linears}
    placed: dict[tuple[nn.Linear, tuple[int, int]], str] = {}
    for index, (node, linear) in enumerate(zip(tail.linears, linears, strict=True)):
        grid_size = tail.grid_size if index == 0 else (1, 1)
        if (linear, grid_size) not in placed:
            name = f"{node.target}_{index}" if node.target in taken else str(node.target)
            traced.set_submodule(name, _as_convolution(linear, grid_size))
            placed[linear, grid_size] = name
            taken.add(name)
        node.target = placed[linear, grid_size]


def _as_convolution(linear: nn.Linear, grid_size: tuple[int, int]) -> nn.Conv2d:
    p, q = grid_size
    channels, rest = divmod(linear.in_features, p * q)
    if rest:
        raise ArchitectureError(f"a Linear layer of {linear.in_features} inputs does not fit a {p}x{q} grid")
    conv = nn.Conv2d(channels, linear.out_features, (p, q), bias=linear.bias is not None, device="meta")
    weight = linear.weight.detach().view(linear.out_features, channels, p, q)  # rows are flattened (C, H, W)
    conv.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv.train(linear.training)


def _require_channels(traced: fx.GraphModule, norm: fx.Node, tail: Tail) -> None:
    """Refuse a normalisation over all values of a flattened grid: in a dense net windows share these cells."""
    values = norm.meta["shape"][1]
    if tail.grid_size != (1, 1) and values == math.prod(tail.grid_size) * tail.features.meta["shape"][1]:
        p, q = tail.grid_size
        name = type(traced.get_submodule(str(norm.target))).__name__
        raise ArchitectureError(
            f"{name} normalises the {values} values of a flattened {p}x{q} grid one by one, which has no channel-wise"
            " form; choose a classifier that normalises before it flattens or behind its first Linear layer"
        )


def _channelwise(norm: nn.Module) -> nn.Module:
    """Return the layer that normalises every cell of (N, C, h, w) as a layer normalises (N, C)."""
    if isinstance(norm, LayerNorm2d) or type(norm).__name__ == "LayerNorm2d" or isinstance(norm, nn.BatchNorm2d):
        return norm
    if isinstance(norm, nn.LayerNorm):
        dense: nn.Module = LayerNorm2d(
            norm.normalized_shape, norm.eps, norm.elementwise_affine, norm.bias is not None, device="meta"
        )
    elif isinstance(norm, nn.BatchNorm1d):
        dense = nn.BatchNorm2d(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
    elif isinstance(norm, nn.RMSNorm):
        dense = RMSNorm2d(list(norm.normalized_shape), norm.eps, norm.elementwise_affine, device="meta")
    else:
        raise ArchitectureError(f"{type(norm).__name__} in the classifier's tail has no channel-wise form")
    dense.load_state_dict(norm.state_dict(), assign=True)
    return dense.train(norm.training)


def _take_channels(node: fx.Node) -> None:
    """Make a function over the last axis of (N, C) work over the channels of (N, C, h, w)."""
    place = {"softmax": 1, "log_softmax": 1, "normalize": 2}.get(getattr(node.target, "__name__", str(node.target)))
    if place is not None and len(node.args) > place and node.args[place] == -1:
        node.update_arg(place, 1)
    elif place is not None and node.kwargs.get("dim") == -1:
        node.update_kwarg("dim", 1)


def _spread_constants(traced: fx.GraphModule, node: fx.Node) -> None:
    """Reshape a function's constants with one value per channel, so that they apply to every cell of (N, C, h, w)."""
    for value in node.all_input_nodes:
        shape = value.meta.get("shape")
        if shape is not None and value.meta["constant"] and math.prod(shape) > 1:
            with traced.graph.inserting_before(node):
                spread = traced.graph.call_method("reshape", (value, -1, 1, 1))
            node.replace_input_with(value, spread)


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements of all distinct parameters."""
    return sum(p.numel() for p in module.parameters())
