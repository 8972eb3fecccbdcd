"""What do tiles cost beside what their margins add?

Run it: python benchmarks/tiling.py MODEL.onnx [--size 2000x3000] [--tiles 512 1024 1536] [--rounds N] [--threads N]

Segments one image of random patches whole and in tiles, alternating within one run, and prints Markdown: the medians
and the range of the middle half, the tiles' time over the whole image's, and the multiply-adds of the net for the tiles
over those for the whole image, which follow from the geometry (the net's multiply-adds grow as its padded pixels do).
The last column is the overhead proper: the first ratio over the second. It may be below 1, because scores are brought
to pixels by matrices, at a cost a pixel that grows with the side of what is segmented at once.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fcnseg
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import plan_tiles


def patches(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", default="2000x3000", help="rows x columns")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 1536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    segmenter = fcnseg.load(options.model, "cpu", options.threads)
    image = patches(height, width)
    choices = [None, *options.tiles]
    times: dict[int | None, list[float]] = {tile: [] for tile in choices}
    for _ in range(options.rounds + 1):
        for tile in choices:
            times[tile].append(seconds(lambda tile=tile: segment_in_tiles(segmenter, image, tile)))
    print(f"{options.model.name}, {height} x {width}, {options.rounds} rounds\n")
    print("| tile | tiles | seconds | over the whole image's | multiply-adds over the whole image's | overhead |")
    print("|---|---|---|---|---|---|")
    whole = statistics.median(times[None][1:])
    for tile in choices:
        tiling = plan_tiles(segmenter.info, height, width, tile)
        ratio = statistics.median(times[tile][1:]) / whole
        print(
            f"| {tile or 'whole'} | {len(tiling)} | {spread(times[tile][1:])} | {ratio:.2f} | {tiling.work:.2f} |"
            f" {ratio / tiling.work:.2f} |"
        )


if __name__ == "__main__":
    main()
