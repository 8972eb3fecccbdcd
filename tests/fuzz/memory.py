"""A limit on the memory that something takes at its peak, in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.process_memory import forget_peak, peak, resident

MIB = 1 << 20


def require_peaks() -> None:
    """Skip a test where the system does not tell of peaks."""
    try:
        forget_peak()
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Fail where a block takes more than so many bytes at its peak."""
    forget_peak()
    before = resident()
    yield
    taken = peak() - before
    assert taken <= count, f"{taken / MIB:.0f} MiB were taken, where {count / MIB:.0f} are enough"
