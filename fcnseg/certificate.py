"""The certificate: what a conversion proved, and the geometry that follows from the net's graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fcnseg.words import first_of

Identity = Literal["window", "cam"]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Certificate:
    """Proof that a heatmap net computes its classifier.

    An error is the largest absolute difference divided by the largest absolute logit.

    Attributes:
        identity: `window`: at the native size the map is one cell and equals the logits. `cam`: at the native size the
            map's mean equals the logits (class activation mapping, arXiv 1512.04150).
        relative_error: Error of the identity at the native size, on seeded random images.
        photo_error: Error of the identity at the native size, on photographs; None if the net does not take
            photographs or none are installed.
        border_effect: Difference between a cell of a larger image's map and the classifier's answer for that cell's
            native-size crop, caused by zero padding inside the net at the crop's border. 0 for nets without padding.
        tolerance: Bound for `relative_error`, `photo_error` and, for nets without padding, the measured border effect.
        input_size: Native (height, width).
        output_stride: (y, x) pixels between cells.
        offset: (y, x) centre of cell 0.
        alignment: (y, x) coarsest subsampling in the net.
        receptive_field: (y, x) pixels that a cell depends on.
        global_context: Modules through which a cell depends on the whole image.
        parameters_before: Parameters of the classifier, auxiliary heads included.
        parameters_after: Parameters of the heatmap net.
        fc_parameters: Parameters of the classifier's Linear layers.
    """

    identity: Identity
    relative_error: NotNegative
    photo_error: NotNegative | None
    border_effect: NotNegative
    tolerance: NotNegative
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

    def __str__(self) -> str:
        """Return the rows as a plain-text table."""
        rows = list(self.rows())
        width = max(len(what) for what, _ in rows)
        return "\n".join(f"{what:<{width}}  {value}" for what, value in rows)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the certificate as (what, value) rows for a table."""
        means = {
            "window": "one cell at native size = logits",
            "cam": "mean of the map at native size = logits",
        }
        yield "identity", f"{self.identity}: {means[self.identity]}"
        yield "relative error", f"{self.relative_error:.1e} (must be below {self.tolerance:.0e})"
        yield "on photographs", "not measured" if self.photo_error is None else f"{self.photo_error:.1e}"
        yield "border effect", f"{self.border_effect:.2g}" if self.border_effect else "0: no padding in the net"
        yield "native size", format_pair(self.input_size)
        yield "output stride", format_pair(self.output_stride)
        yield "offset of cell 0", format_pair(self.offset)
        yield "alignment", format_pair(self.alignment)
        yield "receptive field", format_pair(self.receptive_field)
        modules = first_of(self.global_context, 3)
        yield "global context", f"yes: {len(self.global_context)} modules ({modules})" if modules else "none"
        yield "parameters", f"{self.parameters_before:,} -> {self.parameters_after:,}"
        yield "in FC layers", f"{self.fc_parameters:,} ({self.fc_share:.1%})"


def format_pair(values: tuple[float, float]) -> str:
    """Format a (y, x) pair, as a single number if both are equal."""
    y, x = (f"{v:g}" for v in values)
    return y if y == x else f"{y}x{x}"
