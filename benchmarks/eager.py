"""How much faster is a model file than the same net in PyTorch, as it is usually written?

Run it: python benchmarks/eager.py [--net ARCH ...] [--rounds N] [--seconds S] [--threads N] [--json FILE]

FCN-8s nets of 21 classes with random weights, one 480x360 photograph at a time, on the CPU. Every side is given the
pixels, (360, 480, 3) uint8, and gives the class map, (360, 480) uint8; all run in this process with the same number of
threads, in turns. Sides:

fcnseg   fcnseg.load(FILE, "cpu").segment(pixels).class_map
eager    PyTorch on the same module, resampling by grids included: model.eval(), torch.inference_mode(), pixel_scores,
         argmax.
as users of torchvision and segmentation_models_pytorch write it: the net alone between pixels / 255, normalisation and
         F.interpolate(bilinear) to pixels, argmax; with zeros around the image where the net looks beyond it.

The first two give the same mask wherever a pixel's two best scores are clearly apart (`nets.CLEAR`), or the run
fails. The third stretches the map otherwise, hence other masks; the share of pixels that agree is told.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from as_users_write_it import AsUsersWriteIt
from loop import HEIGHT, WIDTH, photograph
from nets import build_net, clear_pixels, export_net
from numpy.typing import NDArray
from reporting import Report, Table, add_json_option, in_turns

import fcnseg
from fcnseg.cores import usable_cores
from fcnseg.types import ClassMap
from training.model import SegmentationModel

NETS = ("mobilenet_v2", "timm/tf_efficientnet_lite0", "resnet50", "vgg16")
TITLE = f"Milliseconds from pixels to class map, {WIDTH}x{HEIGHT}"
COLUMNS = (
    "net",
    "fcnseg, ms",
    "eager, ms",
    "as users write it, ms",
    "eager / fcnseg",
    "as users write it / fcnseg",
    "pixels clearly apart",
    "pixels alike as users write it",
)
NOTE = (
    "Eager runs the same module as the model file, resampling by grids included; their masks are equal wherever the two"
    " best scores of a pixel are clearly apart. As users of torchvision and segmentation_models_pytorch write it, the"
    " map is stretched to pixels by F.interpolate, which gives other masks."
)

Pixels = NDArray[np.uint8]


def eager(model: SegmentationModel, image: Pixels) -> Pixels:
    with torch.inference_mode():
        scores = model.pixel_scores(torch.from_numpy(image)[None])
        class_map: Pixels = scores.argmax(1).to(torch.uint8)[0].numpy()
    return class_map


def as_users_write_it(net: AsUsersWriteIt, image: Pixels) -> Pixels:
    with torch.inference_mode():
        class_map: Pixels = net(torch.from_numpy(image)[None])[0][0].numpy()
    return class_map


def compare(net: str, folder: Path, arguments: argparse.Namespace, table: Table) -> None:
    model, path = build_net(net), folder / "net.onnx"
    export_net(model, path)
    segmenter = fcnseg.load(path, "cpu", arguments.threads)
    image, users = photograph(), AsUsersWriteIt(model)
    sides: dict[str, Callable[[], ClassMap]] = {
        "fcnseg": lambda: segmenter.segment(image).class_map,
        "eager": lambda: eager(model, image),
        "users": lambda: as_users_write_it(users, image),
    }
    found = {name: side() for name, side in sides.items()}
    with torch.inference_mode():
        clear = clear_pixels(model.pixel_scores(torch.from_numpy(image)[None]))[0].numpy()
    same = found["fcnseg"] == found["eager"]
    if not same[clear].all() or clear.mean() < 0.5 or len(np.unique(found["eager"])) < 2:
        raise SystemExit(f"{net}: the masks differ where the scores are clearly apart, or tell nothing")
    rounds = in_turns(sides, arguments.rounds, arguments.seconds)
    ms = [spread.scaled(1e3) for spread in rounds.values()]
    ratios = (other.over(ms[0]) for other in ms[1:])
    table.add(net, *ms, *ratios, float(clear.mean()), float((found["users"] == found["fcnseg"]).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=NETS, metavar="ARCH", help=f"default: {' '.join(NETS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each round (1)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of both (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = Report(arguments.json)
    table = report.table("eager", TITLE, COLUMNS, NOTE)
    with tempfile.TemporaryDirectory() as folder:
        for net in arguments.net:
            compare(net, Path(folder), arguments, table)
    report.write()


if __name__ == "__main__":
    main()
