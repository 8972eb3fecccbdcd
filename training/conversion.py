"""From a classifier to a net that answers with a heatmap: its fully connected layers become convolutions.

A Linear layer over a flattened (C, p, q) grid is a p x q convolution whose filters are the layer's rows reshaped to
(C, p, q); the Linear layers behind it are 1x1 convolutions (Long, Shelhamer, Darrell, arXiv 1411.4038, section 3.1).
The surgery edits a torch.fx graph in place of the modules, so that parameters keep their names.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models.convnext import LayerNorm2d

from fcnseg.certificate import Certificate, Identity
from fcnseg.errors import ArchitectureError, ParityError
from training.grid import derive_net_grid
from training.refusal import refuse_transformers
from training.tail import Tail, find_tail, record_shapes
from training.tracing import fix_same_padding, trace_layers

Rule = Literal["auto", "cam", "window"]
TOLERANCE = 1e-5
_PARITY_IMAGES = 2


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
        net: Maps (N, C, H, W) to scores; its graph is what FCNs are cut from.
        features: The node of the last feature map.
        hidden: The node that the score layer reads.
        linears: The nodes that were Linear layers, the last of which scores; none in SqueezeNet.
    """

    net: fx.GraphModule
    features: fx.Node
    hidden: fx.Node
    linears: tuple[fx.Node, ...]


def convolutionalize(model: nn.Module, input_size: tuple[int, int] = (224, 224), rule: Rule = "auto") -> Conversion:
    """Turn a convolutional classifier into a heatmap net, and prove that it computes the same.

    Args:
        model: Maps (N, C, H, W) float to (N, K) logits; it is not changed.
        input_size: Native (height, width): the size that the classifier was made for.
        rule: For nets with global average pooling, `cam` drops the pooling and `window` makes it a stride-1 window of
            its native size. `auto` takes cam where its identity holds, else window.

    Raises:
        ArchitectureError: The net is no convolutional classifier whose tail can be converted.
        ParityError: No identity holds with a relative error below 1e-5.
    """
    model = prepared_copy(model, input_size)
    images = _parity_images(model, input_size)
    with torch.no_grad():
        logits = _first(model(images))
    tried: list[str] = []
    for identity in _identities(model, input_size, rule):
        trunk = dense_trunk(model, input_size, identity)
        error = _relative_error(trunk.net, images, logits, identity)
        if error < TOLERANCE:
            break
        tried.append(f"{identity}: {error:.1e}")
    else:
        raise ParityError(
            f"the converted {type(model).__name__} does not compute its classifier at {input_size[0]}x{input_size[1]}"
            f" (relative error {', '.join(tried)}, must be below {TOLERANCE:.0e}); is that its native size?"
            + (" --rule window may hold" if rule == "cam" else "")
        )
    net = trunk.net
    grid = derive_net_grid(net, input_size, images.shape[1])
    y, x = grid.maps[-1].lattice
    certificate = Certificate(
        identity=identity,
        relative_error=error,
        photo_error=None,
        border_effect=0.0,
        tolerance=TOLERANCE,
        input_size=input_size,
        output_stride=(y.stride, x.stride),
        offset=(y.offset, x.offset),
        alignment=grid.alignment,
        receptive_field=(grid.grid.y.field, grid.grid.x.field),
        global_context=grid.global_context,
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(net),
        fc_parameters=sum(count_parameters(net.get_submodule(str(node.target))) for node in trunk.linears),
    )
    return Conversion(net, certificate)


def prepared_copy(model: nn.Module, input_size: tuple[int, int]) -> nn.Module:
    """A copy of a classifier in eval mode whose padding no longer depends on the image's size.

    Raises:
        ArchitectureError: The classifier is a transformer.
    """
    model = copy.deepcopy(model).eval()
    refuse_transformers(model)
    fix_same_padding(model, input_size)
    return model


def dense_trunk(model: nn.Module, input_size: tuple[int, int], identity: Identity) -> Trunk:
    """Make a classifier dense by one rule, without proof.

    Args:
        model: The classifier, in eval mode, its padding static; it keeps its modules, and shares parameters with the
            result.
        input_size: Native (height, width).
        identity: What becomes of global pooling: `cam` drops it, `window` makes it a sliding window.

    Raises:
        ArchitectureError: The tail cannot be converted.
    """
    traced = trace_layers(model)
    record_shapes(traced, input_size, input_channels(model))
    tail = find_tail(traced)
    _replace_pool(traced, tail, identity)
    for node in tail.flatten:
        node.replace_all_uses_with(node.all_input_nodes[0])
    for index, node in enumerate(tail.linears):
        linear = traced.get_submodule(str(node.target))
        grid_size = tail.grid_size if index == 0 else (1, 1)
        _set_module(traced, str(node.target), _as_convolution(linear, grid_size))  # type: ignore[arg-type]
    for module in traced.modules():
        if isinstance(module, _DropoutNd):
            # Where a pooling stood between, dropout now follows an activation that needs its output for the gradient.
            module.inplace = False
    for node in tail.norms:
        _set_module(traced, str(node.target), _channelwise(traced.get_submodule(str(node.target))))
    output = next(n for n in traced.graph.nodes if n.op == "output")
    if isinstance(output.args[0], (tuple, list)):
        output.args = (output.args[0][0],)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    hidden = tail.linears[-1].all_input_nodes[0] if tail.linears else output.args[0]
    return Trunk(traced, tail.features, hidden, tail.linears)


def input_channels(model: nn.Module) -> int:
    """Channels of the image that a net takes: those of its first convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ArchitectureError(f"{type(model).__name__} has no convolution, so there is nothing to slide over an image")


def _identities(model: nn.Module, input_size: tuple[int, int], rule: Rule) -> tuple[Identity, ...]:
    """The identities to try, in order."""
    if rule != "auto":
        return (rule,)
    traced = trace_layers(model)
    record_shapes(traced, input_size, input_channels(model))
    tail = find_tail(traced)
    pools_globally = tail.grid_size == (1, 1) and tail.feature_size != (1, 1)
    if not pools_globally:
        return ("window",)
    return ("cam", "window") if tail.is_affine(traced) else ("window",)


def _replace_pool(traced: fx.GraphModule, tail: Tail, identity: Identity) -> None:
    if tail.pool is None:
        return
    (height, width), (p, q) = tail.feature_size, tail.grid_size
    if height % p or width % q:
        raise ArchitectureError(
            f"the tail pools a {height}x{width} map to {p}x{q} cells, which no window of one size does; convert at a"
            " native size whose map is a multiple of the pooled grid"
        )
    source = tail.pool.all_input_nodes[0]
    if (height, width) == (p, q) or ((p, q) == (1, 1) and identity == "cam"):
        tail.pool.replace_all_uses_with(source)
        return
    kernel = (height // p, width // q)
    # A window per cell of a 1x1 grid slides by one; several cells must stay apart by their windows.
    stride = (1, 1) if (p, q) == (1, 1) else kernel
    traced.add_submodule("window", nn.AvgPool2d(kernel, stride))
    with traced.graph.inserting_after(tail.pool):
        window = traced.graph.call_module("window", (source,))
    tail.pool.replace_all_uses_with(window)


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


def _channelwise(norm: nn.Module) -> nn.Module:
    """The form of a normalisation of (N, C) that normalises the channels of every cell of (N, C, h, w)."""
    if isinstance(norm, LayerNorm2d) or type(norm).__name__ == "LayerNorm2d" or isinstance(norm, nn.BatchNorm2d):
        return norm
    if isinstance(norm, nn.LayerNorm):
        dense: nn.Module = LayerNorm2d(norm.normalized_shape, norm.eps, norm.elementwise_affine)
    elif isinstance(norm, nn.BatchNorm1d):
        dense = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    else:
        raise ArchitectureError(f"{type(norm).__name__} in the classifier's tail has no channel-wise form")
    dense.load_state_dict(norm.state_dict())
    return dense.train(norm.training)


def count_parameters(module: nn.Module) -> int:
    """Number of distinct parameters' elements."""
    return sum(p.numel() for p in module.parameters())


def _set_module(root: nn.Module, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _parity_images(model: nn.Module, input_size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    reference = next(model.parameters())
    images = torch.randn(_PARITY_IMAGES, input_channels(model), *input_size, generator=generator)
    return images.to(reference.device, reference.dtype)


def _first(output: object) -> torch.Tensor:
    """The logits, of a net that may answer with auxiliary ones behind them."""
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, torch.Tensor) or value.ndim != 2:
        raise ArchitectureError("the classifier must answer with one (N, K) tensor of logits")
    return value


def _relative_error(net: nn.Module, images: torch.Tensor, logits: torch.Tensor, identity: Identity) -> float:
    with torch.no_grad():
        heatmap = net(images)
    if identity == "window" and heatmap.shape[2:] != (1, 1):
        return float("inf")
    error = (heatmap.mean((2, 3)) - logits).abs().max() / logits.abs().max()
    return float(error)
