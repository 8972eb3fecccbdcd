"""How fast a model works: what the wait of a newcomer is estimated from."""

_SHARE_OF_NEWEST = 0.2
_DEVIATIONS = 2


class Pace:
    """The mean of a series and how far its values lie from it; both follow the newest values.

    Both are exponential averages: a new value counts a fifth, and less with each one after it. The cautious estimate is
    the mean and some deviations, as in TCP's retransmission timer (RFC 6298).

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


class PaceBySize:
    """How long images of a size take, learned from runs; sizes are told apart by powers of two of their pixels.

    A run has a fixed cost, so that the seconds a pixel of small images are far too many for large ones. For a size that
    has not come, the estimate is the least that it can take: its images are let in, and their runs teach the rest.
    """

    def __init__(self) -> None:
        self._seconds_per_pixel: dict[int, Pace] = {}  # replaced when it grows: others read it meanwhile

    @staticmethod
    def octave(pixels: int) -> int:
        """Return the largest power of two that is at most so many pixels."""
        return 1 << pixels.bit_length() - 1

    def add(self, pixels: int, images: int, seconds: float) -> None:
        """Take in a run of some images of so many padded pixels each."""
        octave = self.octave(pixels)
        if octave not in self._seconds_per_pixel:
            self._seconds_per_pixel = {**self._seconds_per_pixel, octave: Pace()}
        self._seconds_per_pixel[octave].add(seconds / (pixels * images))

    def knows(self, pixels: int) -> bool:
        """Tell whether images of about so many pixels have come."""
        return self.octave(pixels) in self._seconds_per_pixel

    def seconds(self, pixels: int) -> float:
        """Return about how many seconds an image of so many padded pixels adds to a run; 0 where nothing is known."""
        pace, counted = self._nearest(pixels)
        return pace.mean * counted

    def cautious_seconds(self, pixels: int) -> float:
        """Return seconds that few such images will exceed."""
        pace, counted = self._nearest(pixels)
        return pace.cautious * counted

    def _nearest(self, pixels: int) -> tuple[Pace, int]:
        """Return the pace to go by, and of how many pixels: all, or as many as the largest images known have."""
        known, octave = self._seconds_per_pixel, self.octave(pixels)
        if larger := [size for size in known if size >= octave]:
            return known[min(larger)], pixels
        if known:
            return known[max(known)], max(known)
        return Pace(), pixels
