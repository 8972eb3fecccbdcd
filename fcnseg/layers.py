"""A net's layers as a table: operation, output shape, stride, receptive field and parameters of each layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fcnseg.geometry import NotNegative, Positive

Kind = Literal["conv", "pool", "fc", "norm", "activation", "other"]


@dataclass(frozen=True)
class Layer:
    """One step of a net that has parameters, pools, normalises or is an activation.

    Attributes:
        name: The module's path in the net; a function's name ends in `()`.
        kind: `fc` for a convolution that was a Linear layer of the classifier's tail; `other` for parameters that
            belong to none of the other kinds.
        operation: What it computes, such as `4096 filters of 512x7x7` or `3x3, stride 2`.
        was: The classifier's layer that the conversion replaced, such as `Linear 25088 -> 4096`; None if not replaced.
        shape: (C, h, w) of the output at the classifier's native size; (C,) if it has no spatial axes.
        stride: (y, x) pixels between cells; None if the output has no grid, as after global pooling, or is finer than
            the image.
        receptive_field: (y, x) pixels that a cell depends on; None if the output has no grid.
        parameters: Number of parameters that no earlier layer has used.
    """

    name: str
    kind: Kind
    operation: str
    was: str | None
    shape: tuple[NotNegative, ...]
    stride: tuple[Positive, Positive] | None
    receptive_field: tuple[Positive, Positive] | None
    parameters: NotNegative


def count_parameters(layers: Iterable[Layer], kind: Kind | None = None) -> int:
    """Count the parameters of the layers of one kind, or of all layers."""
    return sum(layer.parameters for layer in layers if kind in {None, layer.kind})
