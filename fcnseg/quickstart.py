"""The whole workflow from end to end: classifier to heatmap, fine-tuning, export, server, request, mask.

Every step that a user would take on the command line is run as a command in a process of its own; this module only
checks the results.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from fcnseg import images, masks, render
from fcnseg.errors import FcnsegError, ParityError, UsageError
from fcnseg.resample import resample_to_pixels
from fcnseg.segmenter import load
from fcnseg.types import LabelMap, Segmentation

BACKBONE = "timm/tf_efficientnet_lite0"
LEAST_MEAN_IOU = 0.80
_CAT_LABELS = ("tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat")
_CAT_MAP = LabelMap.from_names(["elsewhere", "cat"], [(0, 0, 0), (255, 150, 0)])
_CAT_THRESHOLD = 0.3
# The positions of Chelsea's face and of the background beside it in the 300x451 photograph: (top, bottom, left, right).
_FACE = (60, 290, 60, 360)
_BACKGROUND = (0, 300, 400, 451)
_STOP_SECONDS = 30.0
_MARKER = ".fcnseg-quickstart"


@dataclass(frozen=True)
class _Places:
    """The paths below the quickstart's folder."""

    root: Path

    @property
    def photo(self) -> Path:
        return self.root / "cat" / "chelsea.png"

    @property
    def cat_model(self) -> Path:
        return self.root / "cat.onnx"

    @property
    def data(self) -> Path:
        return self.root / "scenes"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def model(self) -> Path:
        return self.root / "scenes.onnx"


def run_quickstart(root: Path) -> None:
    """Run the quickstart below a folder, printing each command and its result.

    Raises:
        FcnsegError: A step or a check failed.
    """
    console = Console(highlight=False, soft_wrap=True)
    places = _Places(root)
    began = time.monotonic()
    _clear(places)
    _find_cat(places, console)
    mean_iou = _train(places, console)
    _serve(places, console)
    console.rule("done", align="left")
    console.print(f"validation mIoU {mean_iou:.3f}; {time.monotonic() - began:.0f} s in all; look at the pictures:")
    for picture in sorted([*(root / "cat").glob("*.jpg"), *(root / "mask").glob("*.jpg")]):
        console.print(f"  {picture}")


def _clear(places: _Places) -> None:
    """Remove the files of an earlier quickstart, and nothing else.

    Raises:
        UsageError: There is a file in the way that was not made by a quickstart.
    """
    folders = [places.root / name for name in ("cat", "scenes", "run", "mask")]
    models, marker = [places.cat_model, places.model], places.root / _MARKER
    there = next((path for path in (*folders, *models) if path.exists()), None)
    if there is not None and not marker.exists():
        raise UsageError(f"{there} is there, and no quickstart made it; name another folder with -o")
    places.root.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for model in models:
        model.unlink(missing_ok=True)


def _find_cat(places: _Places, console: Console) -> None:
    console.rule("1  a classifier becomes a heatmap model, and finds a cat", align="left")
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise UsageError(
            "the quickstart needs scikit-image for its photograph; pip install 'fcnseg[quickstart]'"
        ) from error
    photo: NDArray[np.uint8] = data.chelsea()
    places.photo.parent.mkdir(parents=True)
    Image.fromarray(photo).save(places.photo)
    _fcnseg(console, "heatmap", BACKBONE, "-o", str(places.cat_model))
    segmenter = load(places.cat_model, "cpu")
    answer = segmenter.segment(places.photo)
    geometry = segmenter.info.geometry
    at_cells = _cat_probability(answer)
    probability = resample_to_pixels(at_cells, geometry, *photo.shape[:2])
    on_cat, beside = _mean(probability, _FACE), _mean(probability, _BACKGROUND)
    console.print(f"probability of a cat: {on_cat:.2f} on Chelsea's face, {beside:.2f} on the background beside it")
    if on_cat < 3 * beside:
        raise ParityError(f"the heatmap does not find the cat: {on_cat:.2f} on it, {beside:.2f} beside it")
    found = Segmentation((probability > _CAT_THRESHOLD).astype(np.uint8), answer.heatmap, None, _CAT_MAP)
    folder = places.photo.parent
    heat = render.heatmap(photo, at_cells, geometry)
    _save(folder / "heatmap.jpg", heat)
    _save(folder / "overlay.jpg", render.overlay(photo, found.class_map, _CAT_MAP))
    _save(folder / "class_map.jpg", render.legend(render.colour_mask(found.class_map, _CAT_MAP), found.classes))
    _save(folder / "input.jpg", photo)


def _train(places: _Places, console: Console) -> float:
    console.rule("2  an FCN-8s is fine-tuned on generated scenes, and exported", align="left")
    _fcnseg(console, "scenes", str(places.data))
    recipe = ("--epochs", "3", "--lr", "0.015", "--scale-jitter", "0.9", "1.1")
    _fcnseg(
        console, "train", str(places.data), "--backbone", BACKBONE, "--variant", "fcn8s", *recipe, "-o", str(places.run)
    )
    _fcnseg(console, "export", str(places.run), "-o", str(places.model))
    report = places.run / "evaluation.json"
    _fcnseg(console, "evaluate", str(places.model), str(places.data), "--split", "val", "--json", str(report))
    mean_iou = float(json.loads(report.read_text())["mean_iou"])
    if mean_iou < LEAST_MEAN_IOU:
        raise FcnsegError(f"the model reached a validation mIoU of {mean_iou:.3f}, below {LEAST_MEAN_IOU}")
    return mean_iou


def _serve(places: _Places, console: Console) -> None:
    console.rule("3  the model is served, and answers as it does offline", align="left")
    name = (places.data / "val.txt").read_text().split()[0]
    photo = next((places.data / "images").glob(f"{Path(name).stem}.*"))
    folder = places.root / "mask"
    served = folder / "served.png"
    with _server(console, places.model) as address:
        _fcnseg(console, "request", address, str(photo), "-o", str(served))
    _fcnseg(console, "segment", str(places.model), str(photo), str(folder / "offline"))
    offline = folder / "offline" / f"{photo.stem}.png"
    if served.read_bytes() != offline.read_bytes():
        raise ParityError(f"the served mask {served} differs from the offline one {offline}")
    console.print(f"the served mask equals the offline one byte for byte ({served.stat().st_size} bytes)")
    _draw(places, photo, served, folder)


def _draw(places: _Places, photo: Path, mask: Path, folder: Path) -> None:
    segmenter = load(places.model, "cpu")
    label_map = segmenter.info.label_map
    image, class_map = images.read(photo), masks.read_ids(mask)
    answer = segmenter.segment(image)
    best = max(answer.classes, key=lambda area: (area.info.id != 0, area.pixels)).info
    heat = render.heatmap(image, answer.heatmap[best.id], segmenter.info.geometry)
    _save(folder / "input.jpg", image)
    _save(folder / "class_map.jpg", render.legend(render.colour_mask(class_map, label_map), answer.classes))
    _save(folder / "overlay.jpg", render.overlay(image, class_map, label_map))
    _save(folder / f"heatmap_{best.name}.jpg", heat)


def _fcnseg(console: Console, *args: str) -> None:
    """Run one fcnseg command, with its output on ours."""
    _show(console, args)
    code = subprocess.run([sys.executable, "-m", "fcnseg", *args], check=False).returncode  # noqa: S603 (our command)
    if code != 0:
        raise FcnsegError(f"'fcnseg {args[0]}' ended with exit code {code}; its message is above")


@contextmanager
def _server(console: Console, model: Path) -> Iterator[str]:
    """Serve a model on a free port while the block runs; yield HOST:PORT."""
    args = ("serve", str(model), "--port", "0", "--device", "cpu", "--log-level", "warning")
    _show(console, args)
    command = [sys.executable, "-u", "-m", "fcnseg", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (our command)
        try:
            yield _address(process, console)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(_STOP_SECONDS)
        console.print(f"server stopped with exit code {code}")


def _address(process: "subprocess.Popen[str]", console: Console) -> str:
    for line in process.stdout or ():
        console.print(line.rstrip())
        listening = re.fullmatch(r"listening on (\S+)", line.strip())
        if listening:
            return listening[1]
    raise FcnsegError("the server ended before it listened; its message is above")


def _show(console: Console, args: tuple[str, ...]) -> None:
    console.print(f"\n[bold]$ fcnseg {' '.join(args)}[/]")


def _cat_probability(answer: Segmentation) -> NDArray[np.float32]:
    """Return (h, w) softmax probabilities of a domestic cat at the heatmap's cells."""
    ids = [answer.label_map.find(name).id for name in _CAT_LABELS]
    probability: NDArray[np.float32] = answer.probabilities[ids].sum(axis=0)
    return probability


def _mean(values: NDArray[np.float32], box: tuple[int, int, int, int]) -> float:
    top, bottom, left, right = box
    return float(values[top:bottom, left:right].mean())


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=92)
