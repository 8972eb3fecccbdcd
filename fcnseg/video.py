"""Segment videos: write an overlay video of the same size and rate, and a manifest with a line for each frame.

`OUTPUT.mp4` is the video; `OUTPUT.manifest.jsonl` beside it has the classes of every frame. Both appear when the video
is complete, or not at all.
"""

import json
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from fcnseg import render
from fcnseg.errors import FcnsegError, UsageError, one_line
from fcnseg.files import replacing, require_place
from fcnseg.frames import Frame, FrameSource
from fcnseg.query import require_opacity
from fcnseg.segmenter import Segmenter
from fcnseg.types import ClassArea, Segmentation

CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""The overlay's codec (FourCC), by the suffix of its file."""

_MPEG4_MOST = 2**16 - 1
_AHEAD = 4  # frames that wait on either side of the engine


@dataclass(frozen=True)
class SegmentedFrame:
    """The outcome for one frame.

    Attributes:
        frame: Its number, from 0.
        time_s: When it is shown, in seconds after the first frame.
        height: Rows.
        width: Columns.
        classes: Classes present with their areas, in the order of their ids; empty when the frame failed.
        decode_ms: Time to read it.
        infer_ms: Time to segment it.
        encode_ms: Time to draw and to write it.
        error: Why the frame failed; None when it did not. The overlay shows a failed frame without a tint, or repeats
            the previous picture if the frame cannot be read.
    """

    frame: int
    time_s: float
    height: int
    width: int
    classes: tuple[ClassArea, ...]
    decode_ms: float
    infer_ms: float
    encode_ms: float
    error: str | None = None

    def row(self) -> str:
        """Return the frame's line of the manifest: a JSON object, without the newline."""
        classes = [
            {"id": area.info.id, "name": area.info.name, "pixels": area.pixels, "fraction": area.fraction}
            for area in self.classes
        ]
        timings = {"decode": self.decode_ms, "infer": self.infer_ms, "encode": self.encode_ms}
        return json.dumps(
            {
                "frame": self.frame,
                "time_s": round(self.time_s, 6),
                "height": self.height,
                "width": self.width,
                "classes": classes,
                "timings_ms": {name: round(value, 3) for name, value in timings.items()},
                "error": self.error,
            },
            ensure_ascii=False,
        )


def manifest_path(output: Path) -> Path:
    """Return the path of an overlay video's manifest."""
    return output.with_suffix(".manifest.jsonl")


def require_video_output(output: Path) -> None:
    """Check, before any work is done, that a video can be written to a path.

    Raises:
        UsageError: The suffix is not of a supported container, or the path cannot be a file.
    """
    if output.suffix.lower() not in CODECS:
        raise UsageError(f"output {output} cannot be written as a video; name a file ending in {', '.join(CODECS)}")
    require_place(output)
    require_place(manifest_path(output))


def segment_video(
    segmenter: Segmenter, frames: FrameSource, output: Path, *, opacity: float = 0.5
) -> Generator[SegmentedFrame, None, None]:
    """Segment frames one after the other, while one thread reads the next frames and another writes earlier ones.

    About ten frames are held at a time, so memory does not grow with the video. If the generator is not exhausted, or
    the program is stopped, neither video nor manifest is left.

    Args:
        segmenter: The model.
        frames: The frames, from `frames.open_frames`.
        output: The overlay video; its suffix chooses the codec, see `CODECS`. If the frames have an odd number of rows
            or columns, the last one is repeated, since the codecs support only even numbers.
        opacity: Weight of the classes' colours in the overlay, 0 to 1.

    Yields:
        The outcome of each frame, in order. After the last one, `frames.notes` says whether the source was complete.

    Raises:
        UsageError: The output cannot be written, the opacity is not from 0 to 1, or frames differ in size.
        ImageError: No frame can be read.
        OSError: A file cannot be written, for example because the disk is full.
    """
    require_video_output(output)
    require_opacity(opacity)
    with ExitStack() as stack:
        video = stack.enter_context(replacing(output))
        manifest = stack.enter_context(replacing(manifest_path(output)))
        rows = stack.enter_context(manifest.open("w", encoding="utf-8"))
        writer = stack.enter_context(_OverlayWriter(video, output, rows, frames.fps, opacity))
        yield from _run(segmenter, frames, writer)
        writer.finish()


def _run(segmenter: Segmenter, frames: FrameSource, writer: "_OverlayWriter") -> Iterator[SegmentedFrame]:
    ahead = iter(frames)
    reading: deque[Future[tuple[Frame | None, float]]] = deque()
    writing: deque[Future[SegmentedFrame]] = deque()
    # One thread each, which keeps the order of the frames.
    reader, encoder = ThreadPoolExecutor(1, "fcnseg-read"), ThreadPoolExecutor(1, "fcnseg-write")
    try:
        reading.extend(reader.submit(_read, ahead) for _ in range(_AHEAD))
        while True:
            frame, decode_ms = reading.popleft().result()
            if frame is None:
                break
            reading.append(reader.submit(_read, ahead))
            began = time.perf_counter()
            answer = _segment(segmenter, frame)
            infer_ms = (time.perf_counter() - began) * 1000
            writing.append(encoder.submit(writer.write, frame, answer, decode_ms, infer_ms))
            if len(writing) > _AHEAD:
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)
        encoder.shutdown(cancel_futures=True)


def _read(frames: Iterator[Frame]) -> tuple[Frame | None, float]:
    began = time.perf_counter()
    frame = next(frames, None)
    return frame, (time.perf_counter() - began) * 1000


def _segment(segmenter: Segmenter, frame: Frame) -> Segmentation | str:
    if frame.image is None:
        return frame.error or "the frame cannot be read"
    try:
        return segmenter.segment(frame.image)
    except Exception as error:  # noqa: BLE001  # onnxruntime's have no base: out of memory for one frame, for example
        return one_line(error)


class _OverlayWriter:
    """Draws frames and writes them to a video, and their rows to a manifest; used by one thread at a time."""

    def __init__(self, part: Path, output: Path, rows: TextIO, fps: float, opacity: float) -> None:
        self._part, self._output = part, output
        self._rows = rows
        self._fps, self._opacity = fps, opacity
        self._video: cv2.VideoWriter | None = None
        self._last: NDArray[np.uint8] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.release()

    def write(self, frame: Frame, answer: Segmentation | str, decode_ms: float, infer_ms: float) -> SegmentedFrame:
        """Write a frame and its row."""
        began = time.perf_counter()
        picture = self._draw(frame, answer)
        self._write_picture(picture)
        result = SegmentedFrame(
            frame=frame.index,
            time_s=frame.time_s,
            height=picture.shape[0],
            width=picture.shape[1],
            classes=() if isinstance(answer, str) else answer.classes,
            decode_ms=decode_ms,
            infer_ms=infer_ms,
            encode_ms=(time.perf_counter() - began) * 1000,
            error=answer if isinstance(answer, str) else None,
        )
        self._rows.write(result.row() + "\n")
        return result

    def finish(self) -> None:
        """Close both files, and check that the video is complete.

        Raises:
            OSError: The video is not complete.
        """
        self._rows.flush()
        if self._video is not None:
            self._video.release()
        # OpenCV does not report failed writes; this fails if the disk is full.
        with self._part.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.write(b"\0")
            file.flush()
            file.truncate(end)
        written = cv2.VideoCapture(str(self._part.absolute()), cv2.CAP_FFMPEG)
        count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if abs(count - self._count) > 1:
            raise OSError(
                f"video {self._output} could not be written whole ({count} of {self._count} frames); is the disk full?"
            )

    def _draw(self, frame: Frame, answer: Segmentation | str) -> NDArray[np.uint8]:
        if frame.image is None:
            assert self._last is not None, "sources raise where the first frame cannot be read"  # noqa: S101
            return self._last
        if isinstance(answer, str):
            return frame.image
        return render.overlay(frame.image, answer.class_map, answer.label_map, self._opacity)

    def _write_picture(self, picture: NDArray[np.uint8]) -> None:
        height, width = picture.shape[:2]
        below, right = height % 2, width % 2
        if self._video is None:
            codec = CODECS[self._output.suffix.lower()]
            fourcc = cv2.VideoWriter.fourcc(*codec)
            size, fps = (width + right, height + below), _writable(self._fps)
            self._video = cv2.VideoWriter(str(self._part.absolute()), cv2.CAP_FFMPEG, fourcc, fps, size)
            if not self._video.isOpened():
                raise FcnsegError(
                    f"video {self._output} cannot be written: OpenCV {cv2.__version__} did not open codec {codec} for"
                    f" {width} x {height} pixels at {self._fps:g} frames a second; try a name that ends in .avi"
                )
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        self._video.write(cv2.copyMakeBorder(bgr, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else bgr)
        self._last = picture
        self._count += 1


def _writable(fps: float) -> float:
    """Round a frame rate to what MPEG-4 can hold: OpenCV writes it as a 16-bit multiple of 10**-n frames per second."""
    digits = next((digits for digits in (3, 2, 1) if fps * 10**digits <= _MPEG4_MOST), 0)
    return round(fps, digits)
