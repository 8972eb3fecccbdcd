"""Reduced precision and its cost: 16-bit floats for GPUs, 8-bit integers for CPUs that multiply them fast.

A file with 16-bit floats passes the parity check itself; one with 8-bit integers is made from a file that passed it in
32 bits. The types of inputs and outputs do not change; normalisation, and all computation after the heatmap, stay in 32
bits.
"""

import copy
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, Protocol, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from fcnseg.devices import resolve_device
from fcnseg.errors import UsageError
from fcnseg.model_card import PrecisionRecord
from training.evaluation import ServedNet, measure
from training.model import SegmentationModel
from training.quiet import quiet
from training.samples import Sample, read_image
from training.tensor_cores import fit_tensor_cores

FilePrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
_QUANTISED = ["Conv", "Relu", "Clip", "Add", "MaxPool", "Concat"]
_FIRST = 3
_PERCENTILE = 99.99
_TIMED_RUNS = 15


class Images(Protocol):
    """A sequence of images that may be read on demand, each (H, W, 3) uint8 RGB; a list of arrays qualifies too."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        """Return an image."""


def halve(rounded: SegmentationModel) -> SegmentationModel:
    """Return a copy of a model whose net computes with 16-bit floats, which tensor cores take.

    Args:
        rounded: The model with weights of 16 bits (see `round_weights`), with which the copy is compared.
    """
    halved = copy.deepcopy(rounded)
    halved.on_tensor_cores = True
    fit_tensor_cores(halved.net)
    halved.net.half()
    return halved


def quantise(path: Path, images: Images) -> onnx.ModelProto:
    """Quantise a model file: its convolutions, and the operators between them, compute with 8-bit integers.

    Weights are scaled per channel and limited to 7 bits: processors without VNNI add pairs of products in 16 bits,
    which would overflow (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Operators
    between convolutions are quantised too, since they would otherwise convert all values to floats and back. The first
    convolutions, which see the image, and the score layers stay in 32 bits: they are few, and quantising them costs the
    most accuracy.

    Args:
        path: The model file, in 32 bits.
        images: Calibration images. The range of a layer's input covers 99.99 % of its values on these images.

    Returns:
        The quantised graph.

    Raises:
        UsageError: There is no image.
    """
    if not len(images):
        raise UsageError("there are no images to calibrate 8-bit integers with; name a data set that has some")
    with tempfile.TemporaryDirectory(prefix="fcnseg-") as folder, quiet():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            str(path), str(target), _Calibration(images), QuantFormat.QDQ, _QUANTISED, per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept_in_floats(onnx.load(path).graph), calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
        )  # fmt: skip
        return onnx.load(target)


def _kept_in_floats(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes up to the last of the first convolutions, and of the score layers and all after."""
    nodes = list(graph.node)
    convolutions = [i for i, node in enumerate(nodes) if node.op_type == "Conv"]
    kept = [node.name for node in nodes[: max(convolutions[:_FIRST], default=-1) + 1]]
    scored: set[str] = set()
    for node in nodes:
        if scored.intersection(node.input) or (node.op_type == "Conv" and ".scores." in node.input[1]):
            kept.append(node.name)
            scored.update(node.output)
    return kept


class _Calibration(CalibrationDataReader):  # type: ignore[misc] # it has no types
    """Yields images in ranges, of one image each: a range's activations are kept together and must have one size."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._range = iter(range(0))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        index = next(self._range, None)
        return None if index is None else {"image": self._images[index][None]}


@dataclass(frozen=True)
class _ImagesOf:
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return read_image(self.samples[index])


def calibration_images(samples: Sequence[Sample], count: int) -> Images:
    """Return `count` images of a split, evenly spread over it."""
    count = min(count, len(samples))
    return _ImagesOf([samples[i * len(samples) // count] for i in range(count)])


def compare(
    file: Path, reference: Path, samples: Sequence[Sample], ignore_id: int | None, device: str = "auto"
) -> PrecisionRecord:
    """Compare a model file with the same model in 32 bits: mean IoU, and alternating timed runs on the first image.

    Args:
        file: The model file.
        reference: The model file in 32 bits.
        samples: Images and masks, at least one.
        ignore_id: The value of pixels without a label.
        device: The device on which both run.
    """
    device = resolve_device(device)
    nets = [ServedNet(path, device) for path in (file, reference)]
    mean_iou, reference_iou = (_mean_iou(net, samples, ignore_id) for net in nets)
    image = read_image(samples[0])
    ratios = []
    for _ in range(_TIMED_RUNS):
        seconds, reference_seconds = (_seconds(net, image) for net in nets)
        ratios.append(reference_seconds / seconds)
    return PrecisionRecord(len(samples), mean_iou, reference_iou, median(ratios), device)


def _mean_iou(net: ServedNet, samples: Sequence[Sample], ignore_id: int | None) -> float:
    (measures,) = deque(measure(net, samples, ignore_id), maxlen=1)
    return measures.mean_iou


def _seconds(net: ServedNet, image: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    net.heatmap(image)  # a complete run, which computes all outputs of the file
    return time.perf_counter() - began
