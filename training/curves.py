"""Draw the learning curves of a training run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fcnseg.files import replacing

_INCHES = (9.0, 3.4)


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw training loss, and validation mean IoU and pixel accuracy, over the epochs.

    Args:
        rows: One row per epoch, as in metrics.csv.
        path: The PNG to write.
    """
    epochs = [row["epoch"] for row in rows]
    figure = Figure(_INCHES, layout="constrained")
    loss, scores = figure.subplots(1, 2)
    loss.plot(epochs, [row["loss"] for row in rows], color="tab:red")
    loss.set(title="training loss", xlabel="epoch")
    loss.set_ylim(bottom=0)
    for name, label in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        scores.plot(epochs, [row[name] for row in rows], label=label)
    best = max(rows, key=lambda row: row["mean_iou"])
    scores.plot([best["epoch"]], [best["mean_iou"]], "o", color="black", label=f"best: {best['mean_iou']:.4f}")
    scores.set(title="validation", xlabel="epoch", ylim=(0, 1))
    scores.legend(loc="lower right")
    for axes in (loss, scores):
        axes.grid(visible=True, alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
