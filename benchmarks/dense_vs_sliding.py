"""How much faster is one dense evaluation than sliding the classifier over the image?

Run it: python benchmarks/dense_vs_sliding.py [--net alexnet|vgg16] [--rounds N] [--threads N]
        [--json FILE]

AlexNet and VGG-16 (torchvision, random weights) answer for every cell of the grid that a 500x500 image gives them: the
converted net in one evaluation, and the classifier on one 224x224 window per cell, at the map's stride. The windows go
through in the batch size that was fastest in a trial, which the table names. Both sides run in this process with the
same threads and alternate within one run; the table has medians and their range. A round of VGG-16's
windows takes about 1.3 T multiply-adds, so it gets fewer rounds.

Sharing work between windows that overlap saves at most the ratio of the multiply-adds, which is printed beside the
times. Long, Shelhamer and Darrell (arXiv 1411.4038, section 3.1) report more than 5 for AlexNet at 500x500: 1.2 ms for
each 227x227 window against 22 ms for the 10x10 grid. Their net rounds the sizes of its poolings up; torchvision's
rounds them down and has 9x9 cells there.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from reporting import Report, add_json_option, in_turns, number, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcnseg.cores import usable_cores
from training import convolutionalize
from training.zoo import Classifier, load_classifier

SIZE = 500
ROUNDS = {"alexnet": 7, "vgg16": 3}
COLUMNS = ("way", "ms", "ratio", "G multiply-adds", "ratio of these")
NOTE = (
    "Dense: the scores of every cell from one evaluation. Windows: the classifier on each cell's own crop. Their scores"
    " differ, since these nets pad with zeros: a window ends where the dense net goes on to see the image."
)
BATCHES = (1, 3, 9, 27, 81)
TRIAL_WINDOWS = 27


def windows(image: Tensor, native: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The (n, C, height, width) windows of native size at a stride, row by row."""
    views = image.unfold(2, native[0], stride[0]).unfold(3, native[1], stride[1])
    return views[0].permute(1, 2, 0, 3, 4).flatten(0, 1)


def slide(classifier: nn.Module, crops: Tensor, batch: int) -> Tensor:
    return torch.cat([classifier(part) for part in torch.split(crops, batch)])


def fastest_batch(classifier: nn.Module, crops: Tensor) -> int:
    """The batch size that takes the least time per window, by one trial each on at most `TRIAL_WINDOWS` windows."""
    classifier(crops[:1])
    trials = {}
    for batch in (b for b in BATCHES if b <= len(crops)):
        part = crops[: max(batch, min(TRIAL_WINDOWS, len(crops)))]
        trials[batch] = seconds(partial(slide, classifier, part, batch)) / len(part)
    print("ms a window, by batch size: " + ", ".join(f"{b}: {1e3 * t:.1f}" for b, t in trials.items()))
    return min(trials, key=trials.__getitem__)


def multiply_adds(run: Callable[[], Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 2  # it counts a multiply-add as two


def compare(report: Report, name: str, rounds: int) -> None:
    torch.manual_seed(0)
    classifier = load_classifier(name, pretrained=False)
    net, certificate = convolutionalize(classifier.net, classifier.input_size)
    with torch.inference_mode():
        race(report, name, classifier, net, certificate.output_stride, rounds)


def race(
    report: Report, name: str, classifier: Classifier, net: nn.Module, stride: tuple[int, int], rounds: int
) -> None:
    image = torch.randn(1, 3, SIZE, SIZE)
    crops = windows(image, classifier.input_size, stride)
    heatmap = net(image)
    h, w = heatmap.shape[2:]
    assert len(crops) == h * w, "a window for every cell"  # noqa: S101
    batch = fastest_batch(classifier.net, crops)
    sides: dict[str, Callable[[], Tensor]] = {
        "dense, one evaluation": lambda: net(image),
        f"windows, {batch} at a time": lambda: slide(classifier.net, crops, batch),
    }
    work = [
        multiply_adds(sides["dense, one evaluation"]),
        len(crops) * multiply_adds(lambda: classifier.net(crops[:1])),
    ]
    times = in_turns(sides, rounds)
    title = f"{name}, {SIZE}x{SIZE}: a {h}x{w} grid of stride {stride[0]}, {len(crops)} windows"
    table = report.table(name, title, COLUMNS)
    dense = next(iter(times.values()))
    for (side, spread), count in zip(times.items(), work, strict=True):
        table.add(side, spread.scaled(1e3), spread.over(dense), count / 1e9, count / work[0])
    logits = slide(classifier.net, crops, batch).T.reshape(heatmap.shape)
    difference = float((heatmap - logits).abs().max() / logits.abs().max())
    table.note = (
        f"{NOTE} The largest difference between the two, relative to the largest logit, is {number(difference)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=ROUNDS, action="append", help="may be repeated; both by default")
    parser.add_argument("--rounds", type=int, help=f"by default {ROUNDS}")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="(cores)")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report(options.json)
    for name in options.net or ROUNDS:
        compare(report, name, options.rounds or ROUNDS[name])
    report.write()


if __name__ == "__main__":
    main()
