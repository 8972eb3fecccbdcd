"""What does it cost to go from scores of cells to a class map of pixels, and which way is cheapest?

Run it: python benchmarks/tail.py [MODEL.onnx] [--classes K ...] [--image FILE] [--rounds N] [--threads N]
        [--json FILE]

A model file is cut at its heatmap, and tails that give the same class map are set behind it:

borders         as exported: blocks of pixels between four cells, where the best class of these four differs
every block     the same for every block, as where confidences are asked for: depth to space, by one matrix product
matrices        two interpolation matrices, arg-max over the classes
channels last   the same with the classes in the innermost dimension
convolution     depth to space by a grouped 2x2 convolution
NumPy, OpenCV   outside of the graph: a bilinear warp of each class's scores, and a running maximum

More classes than the model's are copies of its own with lower scores: they win nowhere and cost as much. The table has
the time of the net alone over each. Class maps have to be that of the matrices, but where two classes tie.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from loop import HEIGHT, SMALL, WIDTH
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from reporting import Report, add_json_option, in_turns
from session import open_session
from torch import Tensor, nn
from torch.nn import functional as F

from fcnseg import images
from fcnseg.cores import usable_cores
from fcnseg.geometry import Geometry
from fcnseg.model_file import read_model_info
from training.grid import Lattice
from training.pixel_blocks import PixelBlocks
from training.quiet import quiet
from training.resample import PIXELS, resample, resample_channels_last

SIDE, ALONE = "borders (used)", "the net alone"
MOST_DIFFERING = 1e-4
"""Of the pixels: where two classes tie, ways that add in another order may choose either."""


class Tails:
    """Ways from (N, K, h, w) scores to (N, H, W) uint8 classes, for a model's geometry."""

    def __init__(self, geometry: Geometry, size: tuple[int, int]) -> None:
        y, x = geometry.y, geometry.x
        self.lattices = Lattice(y.stride, y.centre(0)), Lattice(x.stride, x.centre(0))
        self.size = size

    def borders(self, scores: Tensor) -> Tensor:
        return PixelBlocks(scores, self.lattices, self.size).classes()

    def every_block(self, scores: Tensor) -> Tensor:
        return PixelBlocks(scores, self.lattices, self.size).classes_and_confidences()[0]

    def matrices(self, scores: Tensor) -> Tensor:
        return resample(scores, self.lattices, (PIXELS, PIXELS), self.size).argmax(1).to(torch.uint8)

    def channels_last(self, scores: Tensor) -> Tensor:
        return resample_channels_last(scores, self.lattices, (PIXELS, PIXELS), self.size).argmax(3).to(torch.uint8)

    def convolution(self, scores: Tensor) -> Tensor:
        (y, x), classes = self.lattices, scores.shape[1]
        behind = [(torch.arange(a.stride) + 0.5) / a.stride if a.offset % 1 else torch.arange(a.stride) / a.stride
                  for a in (y, x)]  # fmt: skip
        down, right = (torch.stack([1 - phase, phase], 1) for phase in behind)
        kernel = torch.einsum("ya,xb->yxab", down, right).reshape(-1, 1, 2, 2).repeat(classes, 1, 1, 1)
        before = [int(axis.stride - np.ceil(axis.offset)) for axis in (y, x)]  # pixels of the first block to skip
        if any(skipped not in range(axis.stride + 1) for skipped, axis in zip(before, (y, x), strict=True)):
            raise SystemExit("the convolution is written for nets whose first cell is centred within the first stride")
        parts = F.conv2d(F.pad(scores, (1, 1, 1, 1), mode="replicate"), kernel, groups=classes)
        best = parts.reshape(len(scores), classes, -1, *parts.shape[2:]).argmax(1).to(torch.uint8)
        blocks = best.reshape(-1, y.stride, x.stride, *best.shape[2:]).permute(0, 3, 1, 4, 2)
        whole = blocks.reshape(len(scores), best.shape[2] * y.stride, -1)
        return whole[:, before[0] :, before[1] :][:, : self.size[0], : self.size[1]]

    def outside(self, heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The tail that follows session.run, of one image."""
        y, x = self.lattices
        to_cells = np.array([[1 / x.stride, 0, -x.offset / x.stride], [0, 1 / y.stride, -y.offset / y.stride]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        best = np.full(self.size, -np.inf, np.float32)
        classes = np.zeros(self.size, np.uint8)
        for number, scores in enumerate(heatmap[0]):
            enlarged = cv2.warpAffine(scores, to_cells, self.size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
            better = cv2.compare(enlarged, best, cv2.CMP_GT)
            cv2.max(enlarged, best, best)
            classes[better != 0] = number
        return classes[None]


class _Module(nn.Module):
    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, scores: Tensor) -> Tensor:
        return self.tail(scores)


def cut_at_heatmap(model: Path, classes: int) -> onnx.ModelProto:
    """The net alone, with so many classes."""
    proto = onnx.load(model)
    graph = proto.graph
    needed = {"heatmap"}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(kept)
    for values, name in ((graph.output, "heatmap"), (graph.input, "image")):
        for value in [value for value in values if value.name != name]:
            values.remove(value)
    own = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if classes != own:
        chosen = np.arange(classes) % own
        lower = np.where(np.arange(classes) < own, 0, 1).astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.extend([numpy_helper.from_array(chosen, "chosen"), numpy_helper.from_array(lower, "lower")])
        for node in graph.node:
            node.output[:] = ["own_heatmap" if name == "heatmap" else name for name in node.output]
        graph.node.append(helper.make_node("Gather", ["own_heatmap", "chosen"], ["copies"], axis=1))
        graph.node.append(helper.make_node("Sub", ["copies", "lower"], ["heatmap"]))
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
    del proto.metadata_props[:]
    return proto


def with_tail(net: onnx.ModelProto, tail: Callable[[Tensor], Tensor], heatmap: NDArray[np.float32]) -> onnx.ModelProto:
    with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tail.onnx"
        program = torch.onnx.export(
            _Module(tail), (torch.from_numpy(heatmap),), dynamo=True, input_names=["scores"],
            output_names=["class_map"], opset_version=20, external_data=False, verbose=False,
        )  # fmt: skip
        assert program is not None  # noqa: S101
        program.save(path)
        exported = onnx.load(path)
    exported.ir_version = net.ir_version
    exported = onnx.compose.add_prefix(exported, "tail/")
    return onnx.compose.merge_models(net, exported, io_map=[("heatmap", "tail/scores")])


def run(session: onnxruntime.InferenceSession, feed: dict[str, NDArray[np.uint8]]) -> NDArray[Any]:
    """The session's only output."""
    output: NDArray[Any] = session.run(None, feed)[0]
    return output


def measure(report: Report, model: Path, classes: int, photo: NDArray[np.uint8], rounds: int, threads: int) -> None:
    net = cut_at_heatmap(model, classes)
    feed = {"image": photo[None]}
    alone = open_session(net.SerializeToString(), threads)
    heatmap = run(alone, feed)
    tails = Tails(read_model_info(model).geometry, photo.shape[:2])
    graphs = {
        SIDE: tails.borders,
        "every block": tails.every_block,
        "matrices": tails.matrices,
        "channels last": tails.channels_last,
        "convolution": tails.convolution,
    }
    sessions = {
        name: open_session(with_tail(net, tail, heatmap).SerializeToString(), threads) for name, tail in graphs.items()
    }
    sides: dict[str, Callable[[], NDArray[np.generic]]] = {
        name: partial(run, session, feed) for name, session in {ALONE: alone, **sessions}.items()
    }
    sides["NumPy, OpenCV"] = lambda: tails.outside(run(alone, feed))
    answers = {name: side() for name, side in sides.items()}
    best = answers["matrices"][0]
    differing = {name: int((answer[0] != best).sum()) for name, answer in answers.items() if name != ALONE}
    if worst := [name for name, count in differing.items() if count > best.size * MOST_DIFFERING]:
        raise SystemExit(f"by {', '.join(worst)}, pixels have another class than by the matrices: {differing}")
    times = in_turns(sides, rounds)
    cells = heatmap[0].argmax(0)
    inner = (cells[1:, 1:] == cells[:-1, 1:]) & (cells[1:, 1:] == cells[1:, :-1]) & (cells[1:, 1:] == cells[:-1, :-1])
    title = f"{model.stem}, {classes} classes, {100 * (1 - inner.mean()):.0f} % of the blocks lie on borders"
    table = report.table(f"{classes} classes", title, ("tail", "ms", "the net alone over it", "pixels that differ"))
    for name, spread in times.items():
        table.add(name, spread.scaled(1e3), times[ALONE].over(spread), differing.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=SMALL)
    parser.add_argument("--classes", type=int, nargs="+", default=[11, 21])
    parser.add_argument("--image", type=Path, help="a photograph that the model knows; default: noise, all borders")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="within an operator (cores)")
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.image:
        photo = cv2.resize(images.read(arguments.image), (WIDTH, HEIGHT)).astype(np.uint8)
    else:
        photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    report = Report(arguments.json)
    for classes in arguments.classes:
        measure(report, arguments.model, classes, photo, arguments.rounds, arguments.threads)
    report.write()


if __name__ == "__main__":
    main()
