"""Read a video's frames from a video file or a sequence of images.

OpenCV reads video files with its bundled FFmpeg. Frames are read one after the other and never kept.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg import images
from fcnseg.errors import ImageError, UsageError
from fcnseg.images import DEFAULT_LIMITS, ImageLimits, require_within

# FFmpeg under OpenCV reads these variables once, when it opens its first file. It then prints no errors, which we
# report in one line, and a file that refers to others (a playlist) cannot open anything over a network.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp"),
    *(".ts", ".mts", ".m2ts"),
)
"""Usual file suffixes of videos, in lower case."""

DEFAULT_FPS = 25.0
_TIME_BASE_FPS = 1000  # frame rates from here on are time bases of a millisecond or less, mistaken for rates
_COUNT_TOLERANCE = 2  # frames: some containers state only a duration, from which the count is estimated
_NUMBER = re.compile(r"%(0\d+)?d")


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video.

    Attributes:
        index: Its number, from 0.
        time_s: When it is shown, in seconds after the first frame.
        image: (H, W, 3) uint8 RGB, upright; None if it cannot be read.
        error: Why it cannot be read; None if it can.
    """

    index: int
    time_s: float
    image: NDArray[np.uint8] | None
    error: str | None = None


class FrameSource(Protocol):
    """Frames in order, read once.

    Attributes:
        fps: Frames per second.
        total: Expected number of frames; None if unknown. A container may be wrong.
        notes: Remarks on the source for the user, a line each; more may be added until the last frame has been read.
    """

    fps: float
    total: int | None
    notes: list[str]

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames.

        Raises:
            ImageError: No frame can be read, or a frame exceeds the limits.
        """


def is_video(path: Path) -> bool:
    """Tell by a path's suffix whether it names a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_pattern(path: Path) -> bool:
    """Tell whether a path names numbered files, as in `frames/%05d.png`."""
    return len(_NUMBER.findall(path.name)) == 1 and not path.exists()


def open_frames(
    source: Path, *, fps: float | None = None, limits: ImageLimits = DEFAULT_LIMITS, upright: bool = True
) -> FrameSource:
    """Find the frames of a source.

    Args:
        source: A video file; a folder of images, which are taken in natural order (2 before 10); or a pattern such as
            `frames/%05d.png` for numbered files of a folder, which are taken in the order of their numbers.
        fps: Frames per second; None takes the video's own rate, or 25 for images.
        limits: Frames beyond these limits are refused.
        upright: Whether to apply the file's orientation, or leave frames as they are stored.

    Raises:
        UsageError: The source does not exist, or has no image.
        ImageError: The video cannot be opened, or its frames exceed the limits.
    """
    if is_pattern(source):
        return ImageFrames(_numbered(source), fps or DEFAULT_FPS, limits, upright=upright)
    if source.is_dir():
        found = [path for path in source.iterdir() if not path.name.startswith(".") and path.is_file()]
        found = sorted((path for path in found if path.suffix.lower() in images.SUFFIXES), key=_natural)
        if not found:
            raise UsageError(f"no images in {source}; looked for files ending in {', '.join(images.SUFFIXES)}")
        return ImageFrames(found, fps or DEFAULT_FPS, limits, upright=upright)
    if not source.is_file():
        what = "is neither a file nor a folder" if source.exists() else "does not exist"
        raise UsageError(
            f"input {source} {what}; name a video, a folder of images or a pattern such as frames/%05d.png"
        )
    return VideoFrames(source, fps, limits, upright=upright)


class ImageFrames:
    """The images of a sequence; an image that cannot be read yields a frame with an error instead of pixels."""

    def __init__(self, paths: list[Path], fps: float, limits: ImageLimits, *, upright: bool) -> None:
        self.fps = fps
        self.total: int | None = len(paths)
        self.notes: list[str] = []
        self._paths = paths
        self._limits = limits
        self._upright = upright

    def __iter__(self) -> Iterator[Frame]:
        """Read the images; the first one determines the size of all."""
        first: tuple[Path, tuple[int, ...]] | None = None
        for index, path in enumerate(self._paths):
            try:
                images.require_file(path)
                image = images.read(path, self._limits, upright=self._upright)
            except ImageError as error:
                if first is None:  # without a first image the video's size is unknown
                    raise
                yield Frame(index, index / self.fps, None, str(error))
                continue
            first = first or (path, image.shape)
            if image.shape != first[1]:
                raise UsageError(
                    f"frame {path} has {image.shape[1]} x {image.shape[0]} pixels, but the first, {first[0].name}, has"
                    f" {first[1][1]} x {first[1][0]}; the frames of a video must be of one size"
                )
            yield Frame(index, index / self.fps, image)


class VideoFrames:
    """The frames of a video file."""

    def __init__(self, path: Path, fps: float | None, limits: ImageLimits, *, upright: bool) -> None:
        self.notes: list[str] = []
        self._path = path
        self._limits = limits
        # Absolute, so that no name is mistaken for a URL.
        self._capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise ImageError(
                f"video {path} cannot be opened: it is damaged, cut short, or of a codec that OpenCV {cv2.__version__}"
                f" does not know; try 'ffmpeg -i {path.name} -c:v mpeg4 -q:v 2 new.mp4'"
            )
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, float(upright))
        height, width = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        require_within(limits, height, width, f"a frame of {path}")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total: int | None = int(count) if 0 < count < 2**31 else None
        told = self._capture.get(cv2.CAP_PROP_FPS)
        known = math.isfinite(told) and 0 < told < _TIME_BASE_FPS
        if fps is None and not known:
            self.notes.append(f"{path} tells no frame rate; {DEFAULT_FPS:g} frames a second are assumed")
        self.fps = fps or (told if known else DEFAULT_FPS)
        self._trust_times = fps is None and known

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames until the file ends, or cannot be read further."""
        index, time_s, drift_s, size = 0, 0.0, 0.0, None
        while True:
            read, bgr = self._capture.read()
            if not read:
                break
            size = size or bgr.shape
            if bgr.shape != size:
                raise ImageError(
                    f"video {self._path}: frame {index} has {bgr.shape[1]} x {bgr.shape[0]} pixels, but those before"
                    f" have {size[1]} x {size[0]}; scale them to one size with 'ffmpeg -vf scale'"
                )
            require_within(self._limits, bgr.shape[0], bgr.shape[1], f"a frame of {self._path}")
            time_s, before = index / self.fps, time_s
            stamp_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if self._trust_times and math.isfinite(stamp_s) and stamp_s > before:
                drift_s = max(drift_s, abs(stamp_s - time_s))
                time_s = stamp_s
            image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
            yield Frame(index, time_s, image)
            index += 1
        self._capture.release()
        if index == 0:
            raise ImageError(f"video {self._path} has no frame that can be read; check that it plays")
        if self.total is not None and index + _COUNT_TOLERANCE < self.total:
            self.notes.append(
                f"{self._path} ends after {index} of the {self.total} frames that it announces; it may be cut short"
            )
        if drift_s * self.fps > _COUNT_TOLERANCE:
            self.notes.append(
                f"{self._path} has a variable frame rate: the overlay has {self.fps:g} frames a second throughout, and"
                f" shows frames up to {drift_s:.1f} s off; the manifest has their own times"
            )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers in names by value, and equal ones by their characters."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _numbered(pattern: Path) -> list[Path]:
    before, after = pattern.name[: (match := _NUMBER.search(pattern.name)).start()], pattern.name[match.end() :]  # type: ignore[union-attr]
    digits = int(match[1] or 0)  # type: ignore[index]
    name = re.compile(rf"{re.escape(before)}([0-9]{{{max(digits, 1)},}}){re.escape(after)}")
    if not pattern.parent.is_dir():
        raise UsageError(f"folder {pattern.parent} does not exist; check the path")
    found: dict[int, Path] = {}
    for path in pattern.parent.iterdir():
        if (match := name.fullmatch(path.name)) is not None:
            other = found.setdefault(int(match[1]), path)
            if other is not path:
                first, second = sorted((other.name, path.name))
                raise UsageError(f"{first} and {second} in {path.parent} are both frame {int(match[1])}; move one away")
    if not found:
        raise UsageError(f"no files in {pattern.parent} are named as in {pattern.name}; check the pattern")
    return [found[number] for number in sorted(found)]
