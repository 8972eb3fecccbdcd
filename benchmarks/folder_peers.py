"""What does a folder take by `fcnseg segment`, and by the scripts that one would write instead?

Run it: python benchmarks/folder_peers.py [--net ARCH ...] [--rounds N] [--images N] [--batch N] [--threads N]
        [--json FILE]

480x360 JPEGs, all different, in; PNG masks out. Each side is a program of its own that may use all cores, and sides
alternate:

fcnseg segment      the command, as it runs by default (two images at a time on half of the cores each), without its
                    report.
OpenCV loop         folder_by_opencv.py: imread, cvtColor, session.run and imwrite in a for loop, on the same file.
PyTorch DataLoader  folder_by_pytorch.py: the same weights in PyTorch, with as many workers that read as threads.

Images a second are counted from the first mask to the last; the seconds are all of the program's, its start included;
the memory is the peak of the program's own process, without PyTorch's workers. All masks of the first two are equal, or
the run fails; those of PyTorch wherever a pixel's two best scores are clearly apart (`nets.CLEAR`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from loop import HEIGHT, WIDTH
from nets import build_net, clear_pixels, export_net
from numpy.typing import NDArray
from PIL import Image
from reporting import Report, Spread, Table, add_json_option, ordered, peak_mib
from skimage import data

from fcnseg import images
from fcnseg.cores import usable_cores
from training.model import SegmentationModel

NETS = ("mobilenet_v2", "resnet50")
OURS = "fcnseg segment"
LOOKED_AT = 8  # images whose scores are computed once more
COLUMNS = ("net", "side", "images/s", "fcnseg's images/s over it", "seconds in all", "peak memory, MiB")
NOTE = (
    "Images a second from the first mask to the last; seconds with the program's start; memory of its own process,"
    " without PyTorch's workers."
)


@dataclass(frozen=True)
class Run:
    images_per_second: float
    seconds: float
    peak_mib: float
    masks: dict[str, NDArray[np.uint8]]


def make_folder(folder: Path, count: int) -> None:
    """JPEGs of different windows of photographs."""
    random = np.random.default_rng(0)
    photographs = [
        cv2.resize(photo, (2 * WIDTH, 2 * HEIGHT)) for photo in (data.chelsea(), data.coffee(), data.astronaut())
    ]
    for i in range(count):
        top, left = random.integers(0, HEIGHT), random.integers(0, WIDTH)
        window = photographs[i % len(photographs)][top : top + HEIGHT, left : left + WIDTH, ::-1]
        cv2.imwrite(str(folder / f"{i:06d}.jpg"), window)


def run(command: list[str], output: Path, count: int) -> Run:
    """Run a side, and read what it wrote."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_mib(process.pid))
        time.sleep(0.02)
    took = time.perf_counter() - began
    paths = sorted(output.glob("*.png"))
    if process.returncode or len(paths) != count:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode} and {len(paths)} of {count} masks")
    written = [path.stat().st_mtime_ns for path in paths]
    rate = (count - 1) / (max(written) - min(written)) * 1e9
    return Run(rate, took, peak, {path.stem: np.asarray(Image.open(path)) for path in paths})


def check(runs: dict[str, Run], model: SegmentationModel, source: Path) -> None:
    """See that the sides' masks are the same."""
    ours, opencv, pytorch = (run.masks for run in runs.values())
    for i, (name, mask) in enumerate(ours.items()):
        if not np.array_equal(mask, opencv[name]):
            raise SystemExit(f"{name}: the masks of fcnseg segment and of the OpenCV loop differ")
        if i < LOOKED_AT:
            image = images.read(source / f"{name}.jpg")
            with torch.inference_mode():
                clear = clear_pixels(model.pixel_scores(torch.from_numpy(image)[None]))[0].numpy()
            if clear.mean() < 0.5 or len(np.unique(mask)) < 2 or (mask != pytorch[name])[clear].any():
                raise SystemExit(f"{name}: PyTorch's mask differs where the scores are clearly apart, or tells nothing")


def compare(net: str, source: Path, folder: Path, arguments: argparse.Namespace, table: Table) -> None:
    model, path, state, threads = build_net(net), folder / "net.onnx", folder / "net.pt", str(arguments.threads)
    export_net(model, path)
    torch.save(model.state_dict(), state)
    here = Path(__file__).parent
    by_opencv, by_pytorch = str(here / "folder_by_opencv.py"), str(here / "folder_by_pytorch.py")
    ours = ["-m", "fcnseg", "segment", str(path), str(source)]
    sides = {
        OURS: lambda output: [*ours, output, "--device", "cpu", "--no-report", "--no-tuned"],
        "OpenCV loop": lambda output: [by_opencv, str(path), str(source), output, threads],
        "PyTorch DataLoader": lambda output: [
            by_pytorch, net, str(state), str(source), output, threads, str(arguments.batch)
        ],
    }  # fmt: skip
    found: dict[str, list[Run]] = {side: [] for side in sides}
    for turn in range(arguments.rounds):
        for side in ordered(sides, turn):
            with tempfile.TemporaryDirectory(dir=folder) as output:
                found[side].append(run(sides[side](output), Path(output), arguments.images))
        check({side: runs[-1] for side, runs in found.items()}, model, source)
    rates = {side: Spread.of(run.images_per_second for run in runs) for side, runs in found.items()}
    for side, runs in found.items():
        table.add(
            net,
            side,
            rates[side],
            None if side == OURS else rates[OURS].over(rates[side]),
            Spread.of(run.seconds for run in runs),
            Spread.of(run.peak_mib for run in runs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=NETS, metavar="ARCH", help=f"default: {' '.join(NETS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100, help="in each round (100)")
    parser.add_argument("--batch", type=int, default=1, help="of PyTorch (1)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of the other sides (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    report = Report(arguments.json)
    table = report.table("folder", f"A folder of {arguments.images} JPEGs, {WIDTH}x{HEIGHT}", COLUMNS, NOTE)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "photographs"
        source.mkdir()
        make_folder(source, arguments.images)
        for net in arguments.net:
            compare(net, source, folder, arguments, table)
    report.write()


if __name__ == "__main__":
    main()
