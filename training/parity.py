"""The parity check, which every export must pass: onnxruntime's results are compared with PyTorch's."""

from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcnseg.errors import ArchitectureError, ParityError, one_line
from fcnseg.model_file import OUTPUTS
from training.export_graph import FLAG
from training.model import SegmentationModel
from training.net_file import without_folder

PARITY_SIZES = ((97, 131), (224, 300), (33, 47), (1, 1))
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
"""Tolerance for 16-bit floats, whose 11 significant bits lose accuracy over a hundred layers."""


def parity(
    session: onnxruntime.InferenceSession, model: SegmentationModel, shape: tuple[int, int, int], tolerance: float
) -> float:
    """Compare the results of a file and of a model at one input shape.

    Args:
        session: The opened file.
        model: The model that the file was exported from.
        shape: N, H and W of the images.
        tolerance: The largest error of the heatmap, as a share of the scores' range.

    Returns:
        The heatmap's error.

    Raises:
        ParityError: The error exceeds the tolerance, a class map (computed with or without confidences) differs where
            the two best scores are clearly apart, or confidences differ.
    """
    generator = np.random.default_rng(sum(shape))
    image = generator.integers(0, 256, (*shape, 3), np.uint8)
    class_map, heatmap, confidence, plain_class_map = _answers(session, model, image)
    device = next(model.parameters()).device
    with torch.no_grad():
        images = torch.from_numpy(image).to(device)
        expected = [t.cpu().numpy() for t in model(images)]
    spread = float(np.ptp(expected[1])) or 1.0
    error = float(np.abs(heatmap - expected[1]).max()) / spread
    if heatmap.shape != expected[1].shape or not error <= tolerance:
        raise ParityError(
            f"onnxruntime and PyTorch differ by {error:.1e} of the scores' range at {shape[1]}x{shape[2]}"
            f" (at most {tolerance:.0e}); the file was not written"
        )
    clear = _clear(model, images, 2 * tolerance * spread)
    for found in (class_map, plain_class_map):
        differ = found.shape != expected[0].shape
        wrong = 0 if differ else int(((found != expected[0]) & clear).sum())
        if differ or wrong:
            raise ParityError(
                f"onnxruntime and PyTorch give different class maps at {shape[1]}x{shape[2]} ({wrong} pixels); the file"
                " was not written"
            )
    # With a larger tolerance, scores within it may have clearly different probabilities.
    if tolerance == TOLERANCE and (far := _far(confidence, expected[2])):
        raise ParityError(
            f"onnxruntime and PyTorch give different confidences at {shape[1]}x{shape[2]} ({far} pixels); the file was"
            " not written"
        )
    return error


def _answers(
    session: onnxruntime.InferenceSession, model: SegmentationModel, image: NDArray[np.uint8]
) -> tuple[NDArray[Any], ...]:
    """Return a file's outputs with confidences, and its class map from a run without confidences."""
    try:
        asked = session.run(None, {"image": image, FLAG: np.array(True)})
        return (*asked, *session.run(OUTPUTS[:1], {"image": image}))
    except Exception as error:  # onnxruntime's errors have no other base
        name, (height, width) = without_folder(model.architecture), image.shape[1:3]
        reason = one_line(error.__cause__ or error, 200)
        raise ArchitectureError(
            f"onnxruntime cannot run {name} at {height}x{width} ({reason}); the file was not written"
        ) from error


def _clear(model: SegmentationModel, images: Tensor, gap: float) -> NDArray[np.bool_]:
    """Return (N, H, W) bool: whether a pixel's two best scores differ by more than `gap`."""
    size = (images.shape[1], images.shape[2])
    with torch.no_grad():
        scores = model.pixel_scores(images) if model.class_map_at == "pixel" else model.heatmap(images)
        if scores.shape[1] == 1:
            return np.ones((len(images), *size), bool)
        best = scores.topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] > gap
        if model.class_map_at == "cell":
            clear = model.enlarge(clear.byte(), size) != 0
    found: NDArray[np.bool_] = clear.cpu().numpy()
    return found


def _far(confidence: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    """Count the pixels whose confidences differ by more than a rounding step; all pixels if the shapes differ."""
    if confidence.shape != expected.shape:
        return expected.size
    return int((np.abs(confidence.astype(int) - expected.astype(int)) > 1).sum())
