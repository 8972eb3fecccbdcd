"""Which way of enlarging scores to pixels is fastest in onnxruntime's CPU provider?

Run it: python benchmarks/resampling.py [--classes K ...] [--rounds N] [--threads N] [--json FILE]

A heatmap of stride 8 is enlarged to 360x480 pixels, followed by the arg-max, in four ways that a graph can say it. The
first three give the same class map wherever two classes do not tie; Resize follows half-pixel centres and is shown for
its speed alone.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from loop import HEIGHT, WIDTH
from reporting import Report, add_json_option, in_turns
from session import open_session
from torch import Tensor, nn
from torch.nn import functional as F

from fcnseg.cores import usable_cores
from training.grid import Lattice
from training.quiet import quiet
from training.resample import PIXELS, resample

STRIDE = 8
CELLS = (HEIGHT // STRIDE, WIDTH // STRIDE)


class Enlarge(nn.Module):
    def __init__(self, enlarge: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enlarge = enlarge

    def forward(self, scores: Tensor) -> Tensor:
        return self.enlarge(scores).argmax(1).to(torch.uint8)


def taps() -> Tensor:
    return 1 - (torch.arange(2 * STRIDE - 1) - (STRIDE - 1)).abs() / STRIDE


def matrices(scores: Tensor) -> Tensor:
    lattice = Lattice(STRIDE, 0.0)
    return resample(scores, (lattice, lattice), (PIXELS, PIXELS), (HEIGHT, WIDTH))


def transposed(scores: Tensor) -> Tensor:
    channels = scores.shape[1]
    kernel = (taps()[:, None] * taps()).expand(channels, 1, -1, -1)
    padded = F.pad(scores, (0, 1, 0, 1), mode="replicate")
    enlarged = F.conv_transpose2d(padded, kernel, stride=STRIDE, groups=channels)
    return enlarged[:, :, STRIDE - 1 :, STRIDE - 1 :][:, :, :HEIGHT, :WIDTH]


def transposed_twice(scores: Tensor) -> Tensor:
    channels = scores.shape[1]
    padded = F.pad(scores, (0, 1, 0, 1), mode="replicate")
    column = taps()[:, None].expand(channels, 1, -1, 1)
    row = taps()[None, :].expand(channels, 1, 1, -1)
    tall = F.conv_transpose2d(padded, column, stride=(STRIDE, 1), groups=channels)[:, :, STRIDE - 1 :][:, :, :HEIGHT]
    return F.conv_transpose2d(tall, row, stride=(1, STRIDE), groups=channels)[..., STRIDE - 1 :][..., :WIDTH]


def resize(scores: Tensor) -> Tensor:
    return F.interpolate(scores, scale_factor=STRIDE, mode="bilinear")


SIDES = {
    "two matrices (used)": matrices,
    "transposed convolution": transposed,
    "two 1-d transposed convolutions": transposed_twice,
    "Resize, half-pixel": resize,
}
EQUAL = list(SIDES)[:3]
MOST_DIFFERING = 1e-5
"""Of the pixels: where two classes tie, ways that add in another order may choose either."""


def session(
    enlarge: Callable[[Tensor], Tensor], scores: Tensor, folder: Path, threads: int
) -> onnxruntime.InferenceSession:
    path = folder / f"{enlarge.__name__}.onnx"
    with quiet():
        program = torch.onnx.export(
            Enlarge(enlarge), (scores,), dynamo=True, input_names=["scores"], opset_version=20, external_data=False
        )
        assert program is not None  # noqa: S101
        program.save(path)
    return open_session(path, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[12, 60])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    report = Report(arguments.json)
    for classes in arguments.classes:
        scores = torch.randn(1, classes, *CELLS, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            sessions = {name: session(side, scores, Path(folder), arguments.threads) for name, side in SIDES.items()}
        feed = {"scores": scores.numpy()}
        answers = {name: s.run(None, feed)[0] for name, s in sessions.items()}
        first = next(iter(SIDES))
        for name, answer in answers.items():
            if name in EQUAL and (differing := int((answer != answers[first]).sum())) > answer.size * MOST_DIFFERING:
                raise SystemExit(f"by {name}, {differing} pixels have another class than by {first}")
        runs = {name: lambda s=s, feed=feed: s.run(None, feed) for name, s in sessions.items()}
        times = in_turns(runs, arguments.rounds, at_least_s=0.1)
        title = (
            f"{classes} classes, {CELLS[0]}x{CELLS[1]} cells to {HEIGHT}x{WIDTH} pixels, {arguments.threads} threads"
        )
        columns = ("way", "ms", "ratio", "pixels with the first's class")
        table = report.table(f"{classes} classes", title, columns)
        for name, spread in times.items():
            same = float((answers[name] == answers[first]).mean())
            table.add(name, spread.scaled(1e3), spread.over(times[first]), same)
    report.write()


if __name__ == "__main__":
    main()
