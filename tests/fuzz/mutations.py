"""Bytes that strangers send: sound ones, changed here and there."""

import os
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_MOST_CHANGES = 6
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

SHARE = float(os.environ.get("FCNSEG_FUZZ", "1"))
"""How many times as many examples as `make test` runs are tried; `make fuzz` sets it."""


def examples(count: int) -> settings:
    """Return the settings of a target that `make test` tries so many examples of; each may take 20 s at most."""
    # What `make test` tries is always the same, so that it fails for the change that made it fail.
    return settings(
        max_examples=max(1, round(count * SHARE)),
        derandomize=SHARE == 1,
        deadline=20_000,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds with some bytes or numbers changed, pieces cut out, doubled, or taken from another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, _MOST_CHANGES))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["byte", "bit", "number", "cut", "double", "insert", "end", "splice"])):
            case "byte":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "bit":
                data[place : place + 1] = bytes(b ^ 1 << draw(st.integers(0, 7)) for b in data[place : place + 1])
            case "number":
                size, order = draw(st.sampled_from([2, 4])), draw(st.sampled_from(["little", "big"]))
                number = draw(st.sampled_from(_ODD_NUMBERS)) & (256**size - 1)
                data[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
            case "cut":
                del data[place : place + draw(st.integers(1, 200))]
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 200))]
            case "insert":
                data[place:place] = draw(st.binary(max_size=20))
            case "end":
                del data[place:]
            case "splice":
                other = draw(st.sampled_from(seeds))
                data[place:] = other[draw(st.integers(0, max(0, len(other) - 1))) :]
    return bytes(data)
