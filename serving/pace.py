"""How fast a model works: what the wait of a newcomer is estimated from."""

_SHARE_OF_NEWEST = 0.2
_DEVIATIONS = 2


class Pace:
    """The mean of a series and how far its values lie from it; both follow the newest values.

    Each value counts a fifth when it comes, and less from then on. As TCP's timers do (RFC 6298), who must not promise
    too much takes the mean and some deviations beside it.

    Attributes:
        mean: The mean; 0 before the first value.
        deviation: The mean distance from it; 0 before the second value.
    """

    def __init__(self) -> None:
        self.mean = 0.0
        self.deviation = 0.0
        self._empty = True

    @property
    def cautious(self) -> float:
        """A number that few of the next values will exceed."""
        return self.mean + _DEVIATIONS * self.deviation

    def add(self, value: float) -> None:
        """Take a value in."""
        if self._empty:
            self.mean = value
        else:
            self.deviation += _SHARE_OF_NEWEST * (abs(value - self.mean) - self.deviation)
            self.mean += _SHARE_OF_NEWEST * (value - self.mean)
        self._empty = False
