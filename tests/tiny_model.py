"""A model file small enough to know its answer by heart, built with onnx alone.

Scores live on a grid of 2x2-pixel cells, each the mean colour of its pixels:

- up to 3 classes: class k's score is channel k, so a pixel's class is its strongest channel (red, green, blue);
- more classes: class k stands for the colour (k % 256, k // 256, 0), and the nearest such colour wins, so an image
  paints its own class map.

The image is edge-padded behind to a multiple of 4. Up to 64 classes, the arg-max is taken at every pixel after linear
interpolation; above, at the cells, and enlarged by nearest. All arithmetic is exact in float32, on any device.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fcnseg.geometry import AxisGeometry, Geometry
from fcnseg.model_file import CELL_RESOLUTION_ABOVE, METADATA_KEY, ModelInfo, dump_info
from fcnseg.types import LabelMap

STRIDE = 2
ALIGNMENT = 4
_OPSET = 20
_IR_VERSION = 10
_WORK_SIZE = 768
_ROUNDS_PER_PRODUCT = 64


def write_tiny_model(
    path: Path,
    *,
    class_count: int = 3,
    class_names: tuple[str, ...] | None = None,
    licence: str | None = None,
    global_context: tuple[str, ...] = (),
    fails_on_magenta: bool = False,
    work_rounds: int = 0,
) -> Path:
    """Write a tiny model file and return its path.

    Args:
        path: Where to write it; missing folders are made.
        class_count: K; beyond 256 the class map is uint16.
        class_names: Names of the K classes; the default is red, green, blue, or `class 0`, `class 1`, ...
        licence: The metadata's licence note.
        global_context: Layers of which the metadata says that they look at whole images; none does.
        fails_on_magenta: Whether a run fails inside the graph where the first pixel of an image is (255, 0, 255).
        work_rounds: How much to compute for nothing, to make a run last: 0.1 to 0.3 ms each on one core. Opening
            the file takes two such runs and more.
    """
    graph = _Graph()
    scores = _cell_scores(graph, class_count)
    if fails_on_magenta:
        scores = graph.add("Add", [scores, _fail_on_magenta(graph)])
    if work_rounds:
        scores = graph.add("Add", [scores, _idle_work(graph, work_rounds)])
    graph.add("Identity", [scores], "heatmap")
    _class_map_and_confidence(graph, class_count)

    model = helper.make_model(
        graph.build(class_count), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    info = replace(tiny_info(class_count, class_names, licence), global_context=global_context)
    helper.set_model_props(model, {METADATA_KEY: dump_info(info)})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def tiny_info(
    class_count: int = 3, class_names: tuple[str, ...] | None = None, licence: str | None = None
) -> ModelInfo:
    """Return the metadata of a tiny model."""
    at_cells = class_count > CELL_RESOLUTION_ABOVE
    colours = None
    if class_count <= 3:
        class_names = class_names or ("red", "green", "blue")[:class_count]
        colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)][:class_count]
    names = class_names or tuple(f"class {k}" for k in range(class_count))
    axis = AxisGeometry(
        stride=STRIDE,
        offset=0.5,
        field=STRIDE,
        alignment=ALIGNMENT,
        minimum=ALIGNMENT,
        lead=0,
        trail=0,
        extra_cells=0,
        margin=1 if at_cells else 2,
    )
    return ModelInfo(
        architecture="tiny",
        variant="heatmap",
        label_map=LabelMap.from_names(names, colours),
        geometry=Geometry(axis, axis),
        global_context=(),
        class_map_at="cell" if at_cells else "pixel",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence=licence,
        metrics={"mean_iou": 0.5},
        versions={"onnx": onnx.__version__},
    )


@dataclass
class _Graph:
    """Nodes and initializers in the order they were added."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    prefix: str = "t"

    def add(
        self, op: str, inputs: list[str], output: str = "", **attributes: int | str | list[int] | onnx.GraphProto
    ) -> str:
        output = output or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: NDArray[np.generic] | np.generic | list[int] | list[float]) -> str:
        array = np.array(value)
        name = f"{self.prefix}_constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def build(self, class_count: int) -> onnx.GraphProto:
        ids = TensorProto.UINT8 if class_count <= 256 else TensorProto.UINT16
        self.initializers.append(numpy_helper.from_array(np.zeros((), bool), "with_confidence"))
        return helper.make_graph(
            self.nodes,
            "tiny",
            [
                helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3]),
                helper.make_tensor_value_info("with_confidence", TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info("class_map", ids, ["N", "H", "W"]),
                helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", class_count, "h", "w"]),
                helper.make_tensor_value_info("confidence", TensorProto.UINT8, ["N", "ch", "cw"]),
            ],
            self.initializers,
        )


def _cell_scores(graph: _Graph, class_count: int) -> str:
    """Add the nodes from `image` to scores (N, K, h, w), and `image_size` = (H, W)."""
    pixels = graph.add("Cast", [graph.add("Transpose", ["image"], perm=[0, 3, 1, 2])], to=TensorProto.FLOAT)
    size = graph.add("Shape", ["image"], "image_size", start=1, end=3)
    rest = graph.add("Mod", [graph.add("Neg", [size]), graph.constant([ALIGNMENT])])  # 0 to ALIGNMENT - 1
    pads = graph.add("Concat", [graph.constant([0, 0, 0, 0, 0, 0]), rest], axis=0)
    padded = graph.add("Pad", [pixels, pads], mode="edge")  # (N, 3, a multiple of 4, a multiple of 4)
    means = graph.add("AveragePool", [padded], kernel_shape=[STRIDE, STRIDE], strides=[STRIDE, STRIDE])
    if class_count <= 3:
        weight, bias = np.eye(class_count, 3) / 16, np.zeros(class_count)
    else:
        ids = np.arange(class_count)
        colours = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=1)
        # The nearest colour p to x maximises p.x - |p|^2 / 2.
        weight, bias = colours / 16, -(colours**2).sum(axis=1) / 32
    kernel = weight.astype(np.float32).reshape(class_count, 3, 1, 1)
    return graph.add("Conv", [means, graph.constant(kernel), graph.constant(bias.astype(np.float32))])


def _class_map_and_confidence(graph: _Graph, class_count: int) -> None:
    ids = TensorProto.UINT8 if class_count <= 256 else TensorProto.UINT16
    if class_count > CELL_RESOLUTION_ABOVE:
        scores = "heatmap"
    else:
        scores = _crop(graph, _enlarge(graph, "heatmap", mode="linear", transform="half_pixel"))
    winners = graph.add("ArgMax", [scores], axis=1, keepdims=1)
    if class_count > CELL_RESOLUTION_ABOVE:
        winners = graph.add("Cast", [winners], to=TensorProto.INT32)
        winners = _crop(graph, _enlarge(graph, winners, mode="nearest", transform="asymmetric"))
    graph.add("Cast", [graph.add("Squeeze", [winners, graph.constant([1])])], "class_map", to=ids)

    then, otherwise = _Graph(prefix="then"), _Graph(prefix="else")
    shares = then.add("ReduceMax", [then.add("Softmax", [scores], axis=1), then.constant([1])], keepdims=1)
    if class_count > CELL_RESOLUTION_ABOVE:
        shares = _crop(then, _enlarge(then, shares, mode="nearest", transform="asymmetric"))
    levels = then.add("Round", [then.add("Mul", [shares, then.constant(np.float32(255))])])
    then.add("Cast", [then.add("Squeeze", [levels, then.constant([1])])], "then_confidence", to=TensorProto.UINT8)

    batch = otherwise.add("Shape", ["image"], start=0, end=1)
    shape = otherwise.add("Concat", [batch, otherwise.constant([0, 0])], axis=0)
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    otherwise.nodes.append(helper.make_node("ConstantOfShape", [shape], ["else_confidence"], value=zero))

    branches = {
        name: helper.make_graph(
            branch.nodes,
            name,
            [],
            [helper.make_tensor_value_info(f"{branch.prefix}_confidence", TensorProto.UINT8, ["N", "ch", "cw"])],
            branch.initializers,
        )
        for name, branch in (("then_branch", then), ("else_branch", otherwise))
    }
    graph.add("If", ["with_confidence"], "confidence", **branches)


def _enlarge(graph: _Graph, cells: str, *, mode: str, transform: str) -> str:
    scales = graph.constant(np.array([1, 1, STRIDE, STRIDE], np.float32))
    attributes = {"nearest_mode": "floor"} if mode == "nearest" else {}
    return graph.add("Resize", [cells, "", scales], mode=mode, coordinate_transformation_mode=transform, **attributes)


def _crop(graph: _Graph, maps: str) -> str:
    return graph.add("Slice", [maps, graph.constant([0, 0]), "image_size", graph.constant([2, 3])])


def _sum(graph: _Graph, tensor: str) -> str:
    return graph.add("ReduceSum", [tensor], keepdims=0)


def _fail_on_magenta(graph: _Graph) -> str:
    """Add a Reshape that cannot fit where an image's first pixel is magenta, and return a scalar zero behind it."""
    corner = graph.add("Slice", ["image", graph.constant([0, 0]), graph.constant([1, 1]), graph.constant([1, 2])])
    magenta = graph.constant(np.array([255, 0, 255], np.uint8))
    same = graph.add("Cast", [graph.add("Equal", [corner, magenta])], to=TensorProto.INT64)
    whole = graph.add("ReduceMin", [same, graph.constant([3])], keepdims=0)
    found = graph.add("Reshape", [graph.add("ReduceMax", [whole], keepdims=0), graph.constant([1])])
    shape = graph.add("Add", [found, graph.constant([1])])
    return _sum(graph, graph.add("Reshape", [graph.constant(np.zeros(1, np.float32)), shape]))


def _idle_work(graph: _Graph, rounds: int) -> str:
    """Add matrix products that take as long as `rounds` small ones, and return a scalar zero that depends on them."""
    # Matrices come from the image, and their size from its height: nothing is computed ahead of runs.
    height = graph.add("Slice", ["image_size", graph.constant([0]), graph.constant([1])])
    side = graph.add("Add", [graph.add("Mod", [height, graph.constant([2 * ALIGNMENT])]), graph.constant([_WORK_SIZE])])
    zero = graph.add(
        "Mul", [_sum(graph, graph.add("Cast", ["image"], to=TensorProto.FLOAT)), graph.constant(np.float32(0))]
    )
    state = graph.add("Expand", [zero, graph.add("Concat", [side, side], axis=0)])
    for _ in range(-(-rounds // _ROUNDS_PER_PRODUCT)):
        state = graph.add("MatMul", [state, state])
    return graph.add("Mul", [_sum(graph, state), graph.constant(np.float32(0))])
