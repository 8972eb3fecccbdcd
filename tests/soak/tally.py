"""What a soak has seen so far, from many threads."""

import threading
from collections import Counter

_MOST_PROBLEMS = 50


class Tally:
    """Counts calls by kind and code, answers that were compared with offline ones, and what broke a law.

    Attributes:
        calls: Calls, and images of streams, by kind and status code.
        checked: Answers whose every part was compared with the offline answer, by model.
        problems: What broke a law, one line each; the first ones.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.checked: Counter[str] = Counter()
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def call(self, kind: str, code: str, allowed: set[str], details: str = "") -> None:
        """Count a call, which may have ended with some codes alone."""
        with self._lock:
            self.calls[kind, code] += 1
        if code not in allowed:
            self.problem(f"{kind} ended with {code}, which is none of {', '.join(sorted(allowed))}: {details}")

    def check(self, model: str) -> None:
        """Count an answer that was the offline one."""
        with self._lock:
            self.checked[model] += 1

    def problem(self, line: str) -> None:
        """Take in what broke a law."""
        with self._lock:
            if len(self.problems) < _MOST_PROBLEMS:
                self.problems.append(line)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return the calls by code, by kind."""
        with self._lock:
            table: dict[str, dict[str, int]] = {}
            for (kind, code), count in sorted(self.calls.items()):
                table.setdefault(kind, {})[code] = count
        return table
