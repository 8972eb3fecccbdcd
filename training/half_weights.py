"""Store weights as 16-bit floats but compute with them as 32-bit floats: half the file size, with rounded weights.

The torch model is rounded before it is exported, so that the parity check compares the file with the same weights. Each
BatchNorm is first folded into the convolution before it, since the exporter would otherwise fold it into weights that
are rounded already.
"""

import copy

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fcnseg.errors import WeightsError
from training.fcn import FCN
from training.model import SegmentationModel
from training.same_padding import PaddedConv2d
from training.tracing import called_module

_LARGEST = float(np.finfo(np.float16).max)


def round_weights(model: SegmentationModel) -> SegmentationModel:
    """Return a copy of a model in eval mode whose weights are rounded to 16-bit floats, stored as 32-bit ones.

    Raises:
        WeightsError: A weight is out of range for a 16-bit float.
    """
    rounded = copy.deepcopy(model).eval()
    trunk = rounded.net.trunk if isinstance(rounded.net, FCN) else rounded.net
    if isinstance(trunk, fx.GraphModule):
        _fold_batch_norms(trunk)
    for name, module in rounded.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            weight = module.weight.detach()
            if float(weight.abs().max()) > _LARGEST:
                raise WeightsError(
                    f"the weights of {name} are beyond {_LARGEST:g}, which 16 bits cannot hold; store fp32"
                )
            module.weight = nn.Parameter(weight.half().float())
    return rounded


def store_half(proto: onnx.ModelProto) -> None:
    """Store 32-bit initialisers of rank 2 or more as 16-bit ones, with a Cast, if that does not change their values."""
    graph = proto.graph
    casts = []
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        if initializer.data_type != TensorProto.FLOAT or values.ndim < 2:
            continue
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _fold_batch_norms(trunk: fx.GraphModule) -> None:
    """Fold each BatchNorm into the convolution before it if that has no other user; activations stay."""
    for node in trunk.graph.nodes:
        norm = called_module(trunk, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            continue
        source = node.all_input_nodes[0]
        conv = called_module(trunk, source)
        if (
            not isinstance(conv, nn.Conv2d)
            or type(conv) not in {nn.Conv2d, PaddedConv2d}  # a subclass may change its weights
            or len(source.users) > 1
            or _uses(trunk, source) > 1
            or _uses(trunk, node) > 1
        ):
            continue
        with torch.no_grad():
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        # timm's BatchNorm contains its activation.
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        trunk.set_submodule(str(node.target), nn.Sequential(*rest))


def _uses(trunk: fx.GraphModule, node: fx.Node) -> int:
    return sum(other.op == "call_module" and other.target == node.target for other in trunk.graph.nodes)
