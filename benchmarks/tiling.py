"""What do tiles cost beside what their margins add?

Run it: python benchmarks/tiling.py [MODEL.onnx] [--size 2000x3000] [--tiles 512 1024 1536] [--rounds N] [--threads N]
        [--json FILE]

Segments one image of random patches whole and in tiles, alternating within one run, and prints Markdown: the medians
and their range, the tiles' time over the whole image's, and the multiply-adds of the net for the tiles
over those for the whole image, which follow from the geometry (the net's multiply-adds grow as its padded pixels do).
The last column is the overhead proper: the first ratio over the second.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from nets import build_net, export_net
from numpy.typing import NDArray
from reporting import ROOT, Report, add_json_option, in_turns

import fcnseg
from fcnseg.cores import usable_cores
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import plan_tiles

SMALL_NET = f"{ROOT / 'tests' / 'golden' / 'small_net.py'}:SmallNet"
MOST_DIFFERING = 1e-4
"""Of the pixels: where two classes tie, sums in another order may choose either."""
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


def open_model(path: Path | None, threads: int) -> fcnseg.Segmenter:
    if path is not None:
        return fcnseg.load(path, "cpu", threads)
    with tempfile.TemporaryDirectory() as folder:
        export_net(build_net(SMALL_NET), made := Path(folder) / "small_net.onnx")
        return fcnseg.load(made, "cpu", threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="(tests/golden/small_net.py with random weights)")
    parser.add_argument("--size", default="2000x3000", help="rows x columns")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512, 1024, 1536])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    add_json_option(parser)
    options = parser.parse_args()
    report = Report(options.json)
    height, width = map(int, options.size.split("x"))
    segmenter = open_model(options.model, options.threads)
    image = patches(height, width)
    choices = [None, *options.tiles]
    sides = {str(tile or "whole"): partial(segment_in_tiles, segmenter, image, tile) for tile in choices}
    masks = {name: side().class_map for name, side in sides.items()}
    for name, mask in masks.items():
        if (differing := int((mask != masks["whole"]).sum())) > mask.size * MOST_DIFFERING:
            raise SystemExit(f"in tiles of {name}, {differing} pixels have another class than in the whole image")
    times = in_turns(sides, options.rounds)
    name = options.model.stem if options.model else "small_net"
    title = f"{name}, margin {segmenter.info.geometry.y.margin}, an image of {height} x {width}"
    table = report.table("tiling", title, COLUMNS)
    for tile, (name, spread) in zip(choices, times.items(), strict=True):
        tiling = plan_tiles(segmenter.info, height, width, tile)
        ratio = spread.over(times["whole"])
        table.add(name, len(tiling), spread, ratio, tiling.work, ratio.median / tiling.work)
    report.write()


if __name__ == "__main__":
    main()
