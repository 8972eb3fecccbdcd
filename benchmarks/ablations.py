"""What is each choice of the training recipe worth?

Run it: python benchmarks/ablations.py DATA [--backbone ARCH] [--epochs N] [--only WORD ...] [--json FILE]

Short runs of `fcnseg train` that differ in one thing; but the paper's recipe, which has its own crops and colours.
Images and masks are halved first, so that a run takes minutes on two cores: the figures compare the rows with each
other, and say nothing of what a full run reaches.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
from reporting import Report, add_json_option

from training.data import open_dataset
from training.labels import write_label_map
from training.samples import read_sample

COLUMNS = ("run", "options", "mIoU", "pixel accuracy", "seconds")
SHARED = ["--crop", "160x208", "--colour-jitter", "0.4"]
"""Of all rows but the paper's recipe, which decides on both itself."""
ROWS: dict[str, list[str]] = {
    "FCN-8s (the row that the others differ from)": [],
    "FCN-16s": ["--variant", "fcn16s"],
    "FCN-32s": ["--variant", "fcn32s"],
    "not pretrained": ["--no-pretrained"],
    "paper's recipe, all skips at once": ["--recipe", "paper"],
    "plain cross-entropy": ["--class-weights", "none", "--dice", "0"],
    "Lovász instead of Dice": ["--dice", "0", "--lovasz", "0.5"],
    "no moving average": ["--ema", "0"],
    "statistics not frozen": ["--no-freeze-statistics"],
    "learned upsampling": ["--upsampling", "learned"],
}


def halve(data: Path, folder: Path) -> None:
    """Write a data folder at half its size, as `train/ trainannot/ val/ valannot/`."""
    dataset = open_dataset(data)
    for split in ("train", "val"):
        for sample in dataset.split(split):
            image, mask = read_sample(sample)
            size = (image.shape[1] // 2, image.shape[0] // 2)
            for kind, pixels, how in (
                (split, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), cv2.INTER_AREA),
                (f"{split}annot", mask, cv2.INTER_NEAREST_EXACT),
            ):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(
                    str(folder / kind / f"{Path(sample.name).stem}.png"), cv2.resize(pixels, size, interpolation=how)
                )
    write_label_map(folder / "classes.json", dataset.label_map)


def train(data: Path, run: Path, options: list[str]) -> dict[str, str]:
    """Train, and return the best epoch's row of metrics.csv, with the run's seconds."""
    command = [sys.executable, "-m", "fcnseg", "train", str(data), "-o", str(run), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    return {**max(rows, key=lambda row: float(row["mean_iou"])), "seconds": rows[-1]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="words that a row's name must hold one of")
    add_json_option(parser)
    arguments = parser.parse_args()
    common = ["--backbone", arguments.backbone, "--epochs", str(arguments.epochs)]
    if arguments.weights is not None:
        common += ["--weights", arguments.weights]
    report = Report(arguments.json)
    title = f"{arguments.backbone}, {arguments.epochs} epochs, best epoch on images of half the size"
    table = report.table("ablations", title, COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "half"
        halve(arguments.data, data)
        for i, (name, options) in enumerate(ROWS.items()):
            if arguments.only and not any(word in name for word in arguments.only):
                continue
            shared = [] if "paper" in options else SHARED
            best = train(data, Path(folder) / f"run{i}", [*common, *shared, *options])
            shown = f"`{' '.join(options)}`" if options else ""
            table.add(name, shown, *(float(best[figure]) for figure in ("mean_iou", "pixel_accuracy", "seconds")))
    report.write()


if __name__ == "__main__":
    main()
