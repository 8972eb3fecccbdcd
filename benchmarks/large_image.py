"""How long does a 600-megapixel image take, and how much memory?

Run it: python benchmarks/large_image.py [MODEL.onnx] [--size 20000x30000] [--memory 2.0] [--threads N] [--keep FOLDER]
        [--json FILE]

Needs the extra `large`, and scikit-image for its photographs. Makes a tiled TIFF (JPEG, 512 x 512) of photographs with
noise, so that no two are alike; segments it once, in a fresh process, into a tiled TIFF with overviews, in the tiles
that fit into the memory; and tells seconds, the process's peak memory (VmHWM), and the net's multiply-adds for the
tiles over those for the whole image. Then windows at random, borders and corners among them, are compared with the
masks of crops that hold their margins: the program fails where they differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from reporting import ROOT, Report, Spread, add_json_option, peak_mib

import fcnseg
from fcnseg.cores import usable_cores
from fcnseg.engine import EngineOptions
from fcnseg.images import ImageLimits
from fcnseg.large_images import open_windowed
from fcnseg.large_masks import segment_to_mask
from fcnseg.segmenter import Segmenter
from fcnseg.tiling import choose_tile, plan_tiles

MODEL = ROOT / "tests" / "golden" / "scenes-fcn8s.onnx"
BLOCK, WINDOW, CORNERS = 512, 400, 4
WINDOWED = ImageLimits(max_pixels=1)
OTHERS_BYTES = 3 * 2**28
"""What a process holds beside the working memory of a tile: Python, onnxruntime, the model, GDAL's cache of 256 MiB."""


MOST_DIFFERING = 1e-4
"""Of a window's pixels: where two classes tie, sums in another order may choose either."""
COLUMNS = (
    "model",
    "image",
    "tile",
    "tiles",
    "multiply-adds over the image's",
    "seconds",
    "peak memory (GiB)",
    "pixels that differ",
)


def make_image(path: Path, height: int, width: int) -> None:
    """Write photographs side by side, each mirrored, scaled and made noisy by chance."""
    from skimage import data  # noqa: PLC0415  # the segmenting process needs none

    photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    random = np.random.default_rng(0)
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "jpeg", "photometric": "ycbcr"}
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", **layout}
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                photograph = photographs[random.integers(len(photographs))][:, :: random.choice((-1, 1))]
                block = cv2.resize(np.ascontiguousarray(photograph), (BLOCK, BLOCK)).astype(np.int16)
                block += random.integers(-9, 10, (BLOCK, BLOCK, 1), np.int16)
                cut = block[: height - top, : width - left].clip(0, 255).astype(np.uint8)
                window = ((top, top + cut.shape[0]), (left, left + cut.shape[1]))
                file.write(np.moveaxis(cut, 2, 0), window=window)


def segment(model: Path, image: Path, mask: Path, memory: float, threads: int) -> dict[str, Any]:
    """Segment the image within the memory; what it took."""
    segmenter = fcnseg.load(model, "cpu", options=EngineOptions(threads=threads, arena=False, prove=True))
    assert segmenter.engine.probe is not None  # noqa: S101
    with open_windowed(image, WINDOWED) as opened:
        pixels = (memory * 2**30 - OTHERS_BYTES) / segmenter.engine.probe.plain_bytes_per_pixel
        tile = choose_tile(segmenter.info, opened.height, opened.width, pixels)
        tiling = plan_tiles(segmenter.info, opened.height, opened.width, tile)
        began = time.monotonic()
        segment_to_mask(segmenter, opened, tiling, mask)
        seconds = time.monotonic() - began
    return {
        "tile": tile,
        "tiles": len(tiling),
        "work": tiling.work,
        "seconds": seconds,
        "peak_gib": peak_mib() / 1024,
    }


def check(model: Path, image: Path, mask: Path, threads: int, count: int) -> int:
    """Compare windows of the mask, at the corners and so many more, with the masks of crops around them.

    Returns:
        How many pixels differ, all windows together.
    """
    total = 0
    segmenter = fcnseg.load(model, "cpu", threads)
    with open_windowed(image, WINDOWED) as opened, rasterio.open(mask) as file:
        assert file.overviews(1)  # noqa: S101
        size = (opened.height, opened.width)
        for place in windows(size, count):
            cuts = [around(*cut) for cut in zip(axes(segmenter), size, place, strict=True)]
            crop = segmenter.segment(opened.read(cuts[0], cuts[1])).class_map
            inner = tuple(slice(p.start - c.start, p.stop - c.start) for p, c in zip(place, cuts, strict=True))
            found = file.read(1, window=tuple((p.start, p.stop) for p in place))
            differing = int((found != crop[inner]).sum())
            if differing > found.size * MOST_DIFFERING:
                where = f"the window at {place[0].start}, {place[1].start}"
                raise SystemExit(f"in {where} {differing} pixels have another class than by itself")
            total += differing
    return total


def axes(segmenter: Segmenter) -> tuple[fcnseg.geometry.AxisGeometry, ...]:
    return segmenter.info.geometry.y, segmenter.info.geometry.x


def windows(size: tuple[int, int], count: int) -> Iterator[tuple[slice, slice]]:
    """The corners, then places at random."""
    random, side = np.random.default_rng(1), WINDOW
    last = [extent - side for extent in size]
    places: list[NDArray[np.int64] | tuple[int, int]] = [(0, 0), (0, last[1]), (last[0], 0), (last[0], last[1])]
    places += [random.integers(0, last) for _ in range(count)]
    for top, left in places:
        yield slice(int(top), int(top) + side), slice(int(left), int(left) + side)


def around(axis: fcnseg.geometry.AxisGeometry, size: int, place: slice) -> slice:
    """A window with its margins, on the image's phase."""
    first = max(0, place.start - axis.margin) // axis.alignment // 2 * axis.alignment * 2
    return slice(first, min(size, place.stop + axis.margin))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL, help="(tests/golden/scenes-fcn8s.onnx)")
    parser.add_argument("--size", default="20000x30000", help="rows x columns")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    parser.add_argument("--windows", type=int, default=8, help="places at random that are compared")
    parser.add_argument("--keep", type=Path, help="folder for image and mask; an image that is there is taken")
    parser.add_argument("--segment", action="store_true", help=argparse.SUPPRESS)
    add_json_option(parser)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        image, mask = folder / f"{options.size}.tif", folder / f"{options.size}.mask.tif"
        if options.segment:
            print(json.dumps(segment(options.model, image, mask, options.memory, options.threads)))
            return
        report = Report(options.json)
        title = f"{options.memory:g} GiB allowed, {options.threads} threads"
        table = report.table("large_image", title, COLUMNS)
        if not image.exists():
            make_image(image, height, width)
        command = [sys.executable, *sys.argv, "--segment", "--keep", str(folder)]
        took = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        differing = check(options.model, image, mask, options.threads, options.windows)
        table.add(
            options.model.stem,
            f"{height} x {width}",
            took["tile"] or "whole",
            took["tiles"],
            took["work"],
            Spread.of([took["seconds"]]),
            took["peak_gib"],
            f"{differing} of {CORNERS + options.windows} x {WINDOW * WINDOW}",
        )
        report.write()


if __name__ == "__main__":
    main()
