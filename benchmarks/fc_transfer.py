"""Do fully connected layers protect a transfer?

Run it: OMP_NUM_THREADS=1 python benchmarks/fc_transfer.py [FAR] [--seeds N] [--epochs N] [--json FILE]

Zhang et al. ("In Defense of Fully Connected Layers in Visual Representation Transfer", 2017) find that a classifier's
fully connected (FC) layers keep what is pretrained from being spoilt by a fine-tuning far from home, although a net
without them classifies as well. No pretrained classifier with such layers comes with a Python package, so this makes
its own: the nets of small_vgg.py learn to tell eight kinds of generated 64x64 images (four shapes, each brighter or
darker than its ground). Each then becomes an FCN-8s, by `fcnseg train`'s own loop on the modern recipe, with the FC
layers as convolutions (tail fc) or cut off (tail gap); a net that never had any is the third way. Each is trained from
the pretrained weights and from random ones, on a near domain, generated scenes of the same four shapes, and, given a
data folder FAR of another kind, on that. Tells the best epoch's validation mIoU, the median over the seeds and their
range. A seed draws the new layers' data order, crops and dropout, and the random weights; each net is pretrained
once.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from reporting import Report, Spread, add_json_option
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from fcnseg.types import Rgb
from training.config import TailChoice
from training.contents import look_into
from training.data import open_dataset
from training.fit import fit
from training.losses import balance_classes
from training.recipes import resolve
from training.scenes import CLASS_NAMES, draw_scene, write_scenes
from training.stages import build_for
from training.zoo import load_classifier

NETS = f"{Path(__file__).with_name('small_vgg.py')}:"
NATIVE = (64, 64)
MEAN: Rgb = (0.5, 0.5, 0.5)
STD: Rgb = (0.25, 0.25, 0.25)
BATCH_SIZE = 8
LEARN_IMAGES, LEARN_EPOCHS, TEST_IMAGES = 2400, 10, 400
SCENES = {"train": 400, "val": 80}
WAYS: tuple[tuple[str, TailChoice], ...] = (("max_fc", "fc"), ("max_fc", "gap"), ("max_gap", "gap"))
COLUMNS = (
    "domain",
    "net",
    "tail",
    "parameters",
    "in FC layers",
    "pretrained",
    "best val mIoU (range)",
    "seconds",
)
NEAR_WAYS: tuple[tuple[str, TailChoice], ...] = (("avg_fc", "fc"), ("avg_fc", "gap"))


@dataclass(frozen=True)
class Plan:
    """One training: a net (of small_vgg.py), the tail, its start, where and with what seed."""

    net: str
    tail: TailChoice
    pretrained: bool
    domain: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of it: the best validation mIoU, seconds, parameters, and those in FC layers."""

    mean_iou: float
    seconds: float
    parameters: int
    in_fc: int


def labelled_images(seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Scenes of a single shape, (n, 3, 64, 64), and their labels: which shape, and whether brighter than its ground."""
    images: list[NDArray[Any]] = []
    labels: list[int] = []
    number = 0
    while len(images) < count:
        scene = draw_scene((seed, number), NATIVE[0])
        number += 1
        if len(scene.shapes) != 1:
            continue
        grey = scene.image.mean(axis=2)
        brighter = grey[scene.mask > 0].mean() > grey[scene.mask == 0].mean()
        labels.append(2 * (int(scene.mask.max()) - 1) + int(brighter))
        images.append(cv2.resize(scene.image, NATIVE, interpolation=cv2.INTER_AREA).transpose(2, 0, 1))
    return np.stack(images), np.array(labels)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN[0]) / STD[0]


def pretrain(name: str, folder: Path, epochs: int) -> tuple[float, float]:
    """Train a classifier and leave its weights in the folder; returns its accuracy on held-out images, and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = np.load(folder / "images.npz")
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    images, test_images = images[:LEARN_IMAGES], images[LEARN_IMAGES:]
    labels, test_labels = labels[:LEARN_IMAGES], labels[LEARN_IMAGES:]
    began = time.perf_counter()
    net = load_classifier(NETS + name, input_size=NATIVE, pretrained=False).net.train()
    steps = epochs * (LEARN_IMAGES // 32)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(LEARN_IMAGES).view(-1, 32):
            batch = images[chosen].flip(3) if torch.rand(()) < 0.5 else images[chosen]
            loss = F.cross_entropy(net(normalised(batch)), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        right = net(normalised(test_images)).argmax(1) == test_labels
    torch.save(net.state_dict(), folder / f"{name}.pth")
    return float(right.float().mean()), time.perf_counter() - began


def transfer(plan: Plan, data: Path, folder: Path, epochs: int) -> Result:
    """Train one FCN-8s as `fcnseg train` does."""
    torch.set_num_threads(1)
    dataset = open_dataset(data)
    options = {
        "data": str(data),
        "backbone": NETS + plan.net,
        "tail": plan.tail,
        "pretrained": plan.pretrained,
        "weights": str(folder / f"{plan.net}.pth") if plan.pretrained else None,
        "mean": MEAN,
        "std": STD,
        "input_size": NATIVE,
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "crop": NATIVE,
        "seed": plan.seed,
        "device": "cpu",
    }
    config = resolve(options, NATIVE)
    model = build_for(config, dataset.label_map)
    class_weights = balance_classes(look_into(dataset.split("train"), dataset.label_map), config.class_weights)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as run:
        best = fit(model, dataset, "", config, Path(run), Console(quiet=True), class_weights=class_weights)
    fully_connected = nn.ModuleList(m for n, m in model.named_modules() if n.startswith("net.trunk.classifier."))
    return Result(best["mean_iou"], time.perf_counter() - began, count(model), count(fully_connected))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plans(domains: list[str], seeds: int) -> Iterator[Plan]:
    for seed in range(seeds):
        for domain in domains:
            for net, tail in WAYS + (NEAR_WAYS if domain == "near" else ()):
                for pretrained in (True, False):
                    # At random, a net that never had FC layers and one that lost them are the same.
                    if pretrained or net != "max_gap":
                        yield Plan(net, tail, pretrained, domain, seed)


def tell(report: Report, title: str, results: dict[Plan, Result]) -> None:
    """Put the trainings into the report, those that differ in nothing but the seed in one row."""
    table = report.table("transfer", title, COLUMNS)
    groups: dict[tuple[str, str, str, bool], list[Result]] = defaultdict(list)
    for plan, result in results.items():
        groups[plan.domain, plan.net, plan.tail, plan.pretrained].append(result)
    for (domain, net, tail, pretrained), found in groups.items():
        sizes = (f"{found[0].parameters / 1e3:.0f} k", f"{found[0].in_fc / 1e3:.0f} k")
        measured = (Spread.of(result.mean_iou for result in found), Spread.of(result.seconds for result in found))
        table.add(domain, net, tail, *sizes, "yes" if pretrained else "no", *measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("far", nargs="?", type=Path, metavar="FAR", help="data folder of another kind of images")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="of each transfer (8)")
    parser.add_argument("--learn-epochs", type=int, default=LEARN_EPOCHS, help="of each classifier (10)")
    add_json_option(parser)
    options = parser.parse_args()
    report = Report(options.json)
    with (
        tempfile.TemporaryDirectory() as temporary,
        ProcessPoolExecutor(2, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        folder = Path(temporary)
        images, labels = labelled_images(1, LEARN_IMAGES + TEST_IMAGES)
        np.savez(folder / "images.npz", images=images, labels=labels)
        for _ in write_scenes(folder / "scenes", SCENES, size=NATIVE[0]):
            pass
        domains = {"near": folder / "scenes", **({"far": options.far} if options.far else {})}
        asked = list(plans(list(domains), options.seeds))
        nets = sorted({plan.net for plan in asked})
        title = (
            f"Classifiers of {LEARN_IMAGES} images of {len(CLASS_NAMES) - 1} shapes, brighter or darker;"
            f" {TEST_IMAGES} held out"
        )
        table = report.table("classifiers", title, ("classifier", "accuracy", "seconds"))
        pretrained = pool.map(partial(pretrain, folder=folder, epochs=options.learn_epochs), nets)
        for net, (accuracy, seconds) in zip(nets, pretrained, strict=True):
            table.add(net, accuracy, seconds)
        futures = {plan: pool.submit(transfer, plan, domains[plan.domain], folder, options.epochs) for plan in asked}
        title = f"Transfers: {options.epochs} epochs, {options.seeds} seeds, two processes of one thread"
        tell(report, title, {plan: future.result() for plan, future in futures.items()})
    report.write()


if __name__ == "__main__":
    main()
