"""How fast a model works, from which the waiting time of a new request is estimated."""

_SHARE_OF_NEWEST = 0.2
_DEVIATIONS = 2


class Pace:
    """The mean of a series and its mean deviation, both of which follow the newest values.

    Both are exponential moving averages, in which the newest value has a weight of one fifth. The cautious estimate is
    the mean plus two deviations, similar to TCP's retransmission timer (RFC 6298).

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
        """An upper estimate that few of the next values will exceed."""
        return self.mean + _DEVIATIONS * self.deviation

    def add(self, value: float) -> None:
        """Add a value to the averages."""
        if self._empty:
            self.mean = value
        else:
            self.deviation += _SHARE_OF_NEWEST * (abs(value - self.mean) - self.deviation)
            self.mean += _SHARE_OF_NEWEST * (value - self.mean)
        self._empty = False


class PaceBySize:
    """How long images take by their size, learned from runs; sizes are grouped by powers of two of their pixels.

    A run has a fixed cost, so the seconds per pixel of small images are far too high for large ones. For a size that
    has not come yet, the estimate is a lower bound: its images are admitted, and their runs improve the estimate.
    """

    def __init__(self) -> None:
        self._seconds_per_pixel: dict[int, Pace] = {}  # replaced when it grows: other threads read it

    @staticmethod
    def octave(pixels: int) -> int:
        """Return the largest power of two that is not above a number of pixels."""
        return 1 << pixels.bit_length() - 1

    def add(self, pixels: int, images: int, seconds: float) -> None:
        """Learn from a run of some images of so many padded pixels each."""
        octave = self.octave(pixels)
        if octave not in self._seconds_per_pixel:
            self._seconds_per_pixel = {**self._seconds_per_pixel, octave: Pace()}
        self._seconds_per_pixel[octave].add(seconds / (pixels * images))

    def knows(self, pixels: int) -> bool:
        """Tell whether images of about so many pixels have come."""
        return self.octave(pixels) in self._seconds_per_pixel

    def seconds(self, pixels: int) -> float:
        """Return the mean seconds that an image of so many padded pixels adds to a run; 0 if nothing is known."""
        pace, counted = self._nearest(pixels)
        return pace.mean * counted

    def cautious_seconds(self, pixels: int) -> float:
        """Return an upper estimate of the seconds, which few such images will exceed."""
        pace, counted = self._nearest(pixels)
        return pace.cautious * counted

    def _nearest(self, pixels: int) -> tuple[Pace, int]:
        """Return the pace to use, and the pixels to count: all, or those of the largest known size if it is smaller."""
        known, octave = self._seconds_per_pixel, self.octave(pixels)
        if larger := [size for size in known if size >= octave]:
            return known[min(larger)], pixels
        if known:
            return known[max(known)], max(known)
        return Pace(), pixels
