"""What do tiles cost beside what their margins add?

Run it: python benchmarks/tiling.py [MODEL.onnx] [--size 2000x3000] [--tiles 512 1024 1536] [--rounds N] [--threads N]
        [--json FILE]

Segments one image of random patches whole and in tiles, alternating within one run, and prints Markdown: the medians
and their range, the tiles' time over the whole image's, and the multiply-adds of the net for the tiles
over those for the whole image, which follow from the geometry (the net's multiply-adds grow as its padded pixels do).
The last column is the overhead proper: the first ratio over the second. It may be below 1, because scores are brought
to pixels by matrices, at a cost a pixel that grows with the side of what is segmented at once.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reporting import ROOT, Report, Spread, add_json_option, in_turns

import fcnseg
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import plan_tiles

GOLDEN = ROOT / "tests" / "golden" / "scenes-fcn8s.onnx"
COLUMNS = (
    "tile",
    "tiles",
    "seconds",
    "over the whole image's",
    "multiply-adds over the whole image's",
    "overhead",
)


def patches(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 0).repeat(16, 1)[:height, :width])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=GOLDEN, help="(tests/golden/scenes-fcn8s.onnx)")
    parser.add_argument("--size", default="2000x3000", help="rows x columns")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 1536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    options = parser.parse_args()
    report = Report(options.json)
    height, width = map(int, options.size.split("x"))
    segmenter = fcnseg.load(options.model, "cpu", options.threads)
    image = patches(height, width)
    choices = [None, *options.tiles]
    sides = {str(tile or "whole"): lambda tile=tile: segment_in_tiles(segmenter, image, tile) for tile in choices}
    times = in_turns(sides, options.rounds)
    table = report.table("tiling", f"{options.model.stem}, an image of {height} x {width}", COLUMNS)
    for tile, (name, spread) in zip(choices, times.items(), strict=True):
        tiling = plan_tiles(segmenter.info, height, width, tile)
        ratio = Spread.of(a / b for a, b in zip(spread.values, times["whole"].values, strict=True))
        table.add(name, len(tiling), spread, ratio, tiling.work, ratio.median / tiling.work)
    report.write()


if __name__ == "__main__":
    main()
