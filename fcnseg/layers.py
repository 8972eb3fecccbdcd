"""A net's layers as a table: what each one does, where its cells look, and what it costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fcnseg.geometry import NotNegative, Positive

Kind = Literal["conv", "pool", "fc", "norm", "activation", "other"]


@dataclass(frozen=True)
class Layer:
    """One step of a net that has parameters, or pools, normalises or activates.

    Attributes:
        name: Its module's path in the net; a function's ends in `()`.
        kind: `fc` for what was a Linear layer of the classifier's tail and is a convolution now; `other` for
            parameters that belong to none of the other kinds.
        operation: What it computes, such as `4096 filters of 512x7x7` or `3x3, stride 2`.
        was: What stood there in the classifier, such as `Linear 25088 -> 4096`, where the conversion replaced it.
        shape: (C, h, w) of its output at the classifier's native size; (C,) where it has no spatial axes.
        stride: (y, x) pixels between cells; None where the output has no grid, as behind a pooling of the whole map,
            or is finer than the image.
        receptive_field: (y, x) pixels that a cell depends on; None where the output has no grid.
        parameters: Parameters that no layer before it has used.
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
    """Parameters of the layers of one kind, or of all."""
    return sum(layer.parameters for layer in layers if kind in {None, layer.kind})
