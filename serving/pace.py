"""How fast a model works: what the wait of a newcomer is estimated from."""

_SHARE_OF_NEWEST = 0.2


class MovingAverage:
    """The mean of a series that follows its newest values: each counts a fifth when it comes, and less from then on.

    Attributes:
        value: The mean; 0 before the first value.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._empty = True

    def add(self, value: float) -> None:
        """Take a value in."""
        self.value = value if self._empty else self.value + _SHARE_OF_NEWEST * (value - self.value)
        self._empty = False
