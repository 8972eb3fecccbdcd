"""The certificate: what a conversion proved, and what the net's graph says of its geometry."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

Identity = Literal["window", "cam"]


@dataclass(frozen=True)
class Certificate:
    """Proof that a heatmap net computes its classifier.

    Attributes:
        identity: `window`: at the native size the map is one cell and equals the logits. `cam`: at the native size the
            map's mean equals the logits (class activation mapping, arXiv 1512.04150).
        relative_error: Largest absolute difference over the largest absolute logit, on seeded random images.
        tolerance: What the error had to stay below.
        input_size: Native (height, width).
        output_stride: (y, x) pixels between cells.
        offset: (y, x) centre of cell 0.
        alignment: (y, x) coarsest subsampling.
        receptive_field: (y, x) pixels that a cell depends on.
        global_context: Modules through which a cell depends on the whole image.
        parameters_before: Parameters of the classifier, auxiliary heads included.
        parameters_after: Parameters of the heatmap net.
        fc_parameters: Parameters of the classifier's Linear layers.
    """

    identity: Identity
    relative_error: float
    tolerance: float
    input_size: tuple[int, int]
    output_stride: tuple[int, int]
    offset: tuple[float, float]
    alignment: tuple[int, int]
    receptive_field: tuple[int, int]
    global_context: tuple[str, ...]
    parameters_before: int
    parameters_after: int
    fc_parameters: int

    @property
    def fc_share(self) -> float:
        """Share of the classifier's parameters that its Linear layers hold, 0..1."""
        return self.fc_parameters / self.parameters_before

    def rows(self) -> Iterator[tuple[str, str]]:
        """The certificate as (what, value) rows for a table."""
        means = {
            "window": "one cell at native size = logits",
            "cam": "mean of the map at native size = logits",
        }
        yield "identity", f"{self.identity}: {means[self.identity]}"
        yield "relative error", f"{self.relative_error:.1e} (must be below {self.tolerance:.0e})"
        yield "native size", _pair(self.input_size)
        yield "output stride", _pair(self.output_stride)
        yield "offset of cell 0", _pair(self.offset)
        yield "alignment", _pair(self.alignment)
        yield "receptive field", _pair(self.receptive_field)
        modules = ", ".join(self.global_context[:3]) + (", ..." if len(self.global_context) > 3 else "")
        yield "global context", f"yes: {len(self.global_context)} modules ({modules})" if modules else "none"
        yield "parameters", f"{self.parameters_before:,} -> {self.parameters_after:,}"
        yield "in FC layers", f"{self.fc_parameters:,} ({self.fc_share:.1%})"


def count_parameters(module: nn.Module) -> int:
    """Number of distinct parameters' elements."""
    return sum(p.numel() for p in module.parameters())


def _pair(values: tuple[float, float]) -> str:
    y, x = (f"{v:g}" for v in values)
    return y if y == x else f"{y} x {x}"
