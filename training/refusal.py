"""Refuse nets that cannot become heatmap nets, with the reason."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torchvision.models.swin_transformer import ShiftedWindowAttention

from fcnseg.errors import ArchitectureError

_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "baddbmm", "einsum"}
_WEIGHTS = {"softmax", "normalize", "scaled_dot_product_attention"}


def refuse_coarse_weights(model: nn.Module) -> None:
    """Refuse nets whose weights are missing, or too imprecise for the proof.

    Raises:
        ArchitectureError: A lazy layer has no sizes yet, or a weight has no value or fewer than 32 bits.
    """
    for name, weights in model.named_parameters():
        if is_lazy(weights):
            raise ArchitectureError(
                f"{name} of {type(model).__name__} has no size before the net has seen an image; run it on one first"
            )
        if weights.is_meta:
            raise ArchitectureError(f"{name} of {type(model).__name__} is on the meta device; give it its weights")
        if weights.dtype.itemsize < 4:
            raise ArchitectureError(
                f"{name} of {type(model).__name__} is of {str(weights.dtype).removeprefix('torch.')}, too coarse to"
                " prove that the net computes the same; convert model.float(), and lower the precision of the result"
            )


def refuse_scripts(model: nn.Module) -> None:
    """Refuse nets in TorchScript, whose layers cannot be replaced.

    Raises:
        ArchitectureError: The net, or a module in it, is a TorchScript module.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ArchitectureError(
                f"{name or 'the net'} is TorchScript, whose layers cannot be exchanged; give the Python"
                " module that it was made of"
            )


def refuse_transformers(model: nn.Module) -> None:
    """Refuse nets whose layers are bound to one image size.

    Raises:
        ArchitectureError: The net adds position embeddings or attends over a fixed partition of the image.
    """
    for name, _ in model.named_parameters():
        if "pos_embed" in name:
            raise ArchitectureError(
                f"{type(model).__name__} is a transformer: its position embedding {name} has one entry per patch of"
                " one image size, so it cannot slide over larger images; choose a convolutional classifier"
            )
    for name, module in model.named_modules():
        if isinstance(module, ShiftedWindowAttention) or not any(True for _ in module.parameters()):
            continue  # windows that tile a map of any size; an attention slot that is empty
        named = "Attention" in type(module).__name__
        if isinstance(module, nn.MultiheadAttention) or (named and _attends(module)):
            raise ArchitectureError(
                f"{type(model).__name__} is a transformer: {name} attends over a partition of one image size, so it"
                " cannot slide over larger images; choose a convolutional classifier"
            )


def _attends(module: nn.Module) -> bool:
    """Tell whether a module with Attention in its name is attention, with weights computed from its input.

    Channel or spatial gates (squeeze-and-excitation, CBAM: https://arxiv.org/abs/1807.06521) often have this name too,
    but only pool, convolve and multiply elementwise. Attention multiplies two matrices that are both computed from its
    input, or computes weights from it that sum to one. A module that cannot be traced is taken for attention.
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # noqa: BLE001 # a forward may do anything
        return True
    derived: set[fx.Node] = set()
    for node in graph.nodes:
        factors = derived.intersection(node.all_input_nodes)
        if node.op == "placeholder" or factors:
            derived.add(node)
        if node.op == "call_module":
            weighs = isinstance(module.get_submodule(str(node.target)), nn.Softmax)
        else:
            name = getattr(node.target, "__name__", node.target)
            weighs = name in _WEIGHTS or (name in _PRODUCTS and len(factors) > 1)
        if weighs and factors:
            return True
    return False


def refuse_answer(answer: Sequence[int] | str) -> NoReturn:
    """Refuse a net that does not return logits.

    Args:
        answer: The shape of its output, or a description if the output is not a tensor.

    Raises:
        ArchitectureError: Always.
    """
    if isinstance(answer, str):
        told = answer
    else:
        told = f"a tensor of {' x '.join(map(str, answer))}"
        if len(answer) == 4:
            told += ", as segmentation nets do, which need no conversion"
    raise ArchitectureError(f"a classifier answers with one (N, K) tensor of logits; this net's answer is {told}")
