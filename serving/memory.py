"""Budgets of memory that requests reserve before they allocate it, in bytes, whatever the number and size of images."""

import os
import threading
from collections import deque
from pathlib import Path

from fcnseg import cgroup


class MemoryBudget:
    """A number of bytes that threads take, in the order in which they ask, and give back.

    Args:
        total: The bytes in the budget.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken = 0
        self._waiting: deque[object] = deque()  # the waiting callers, first in, first out
        self._changed = threading.Condition()

    @property
    def taken(self) -> int:
        """The bytes taken at present."""
        return self._taken

    def try_take(self, count: int) -> bool:
        """Take bytes if they are free and nobody waits for any, and tell whether they were taken."""
        with self._changed:
            if self._waiting or self._taken + count > self.total:
                return False
            self._taken += count
            return True

    def take(self, count: int) -> None:
        """Wait until bytes are free and earlier callers have theirs, and take them.

        Raises:
            ValueError: It is more than the whole budget.
        """
        if count > self.total:
            raise ValueError(f"{count} bytes were asked of a budget of {self.total}")
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and self._taken + count <= self.total)
            self._waiting.popleft()
            self._taken += count
            self._changed.notify_all()

    def give_back(self, count: int) -> None:
        """Give back bytes that were taken."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()


def machine_memory(groups: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's or unit's if less.

    Args:
        groups: Where the kernel shows control groups.
        own: Where it tells which of them the process is in.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup.memory_limit(groups, own)
    return total if limit is None else min(total, limit)
