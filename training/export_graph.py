"""Edit an exported graph: set names and shapes, and add the one branch of a model file."""

import copy
from typing import Any

import onnx
from onnx import TensorProto, helper

FLAG = "with_confidence"
"""The optional input that requests confidences."""
PLAIN = "plain_class_map"
"""The class map as computed when no confidences are requested; it is an output until the branch is made."""


def name_as_in_the_model(graph: onnx.GraphProto) -> None:
    """Name weights as in the model, not as in the module that wraps it for export."""
    prefix = "model."
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix(prefix)
    for node in graph.node:
        node.input[:] = [name.removeprefix(prefix) for name in node.input]


def forget_traces(graph: onnx.GraphProto) -> None:
    """Remove each node's source location, which reveals folders of the exporting machine."""
    del graph.metadata_props[:]
    parts: list[Any] = [*graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def declare(proto: onnx.ModelProto, num_classes: int) -> None:
    """Give inputs and outputs the contract's names and shapes; above 256 classes, make the class map uint16."""
    graph = proto.graph
    shapes: dict[str, tuple[int, list[str | int | None]]] = {
        "image": (TensorProto.UINT8, ["N", "H", "W", 3]),
        "class_map": (TensorProto.UINT8 if num_classes <= 256 else TensorProto.UINT16, ["N", "H", "W"]),
        PLAIN: (TensorProto.UINT8, ["N", "H", "W"]),
        "heatmap": (TensorProto.FLOAT, ["N", num_classes, "h", "w"]),
        # Empty, (N, 0, 0), if not asked for, hence dimension names of its own.
        "confidence": (TensorProto.UINT8, ["N", "H_confidence", "W_confidence"]),
    }
    if num_classes > 256:
        producer = _producer(graph, "class_map")
        producer.output[list(producer.output).index("class_map")] = "class_map_int32"
        graph.node.append(helper.make_node("Cast", ["class_map_int32"], ["class_map"], to=TensorProto.UINT16))
    for value in (*graph.input, *graph.output):
        element, shape = shapes[value.name]
        value.CopyFrom(helper.make_tensor_value_info(value.name, element, shape))
    del graph.value_info[:]  # the shapes of intermediates are expressions that do not help a reader


def _producer(graph: onnx.GraphProto, value: str) -> onnx.NodeProto:
    return next(node for node in graph.node if value in node.output)


def guard_confidence(proto: onnx.ModelProto) -> None:
    """Move what only `confidence` needs into an If on the optional input `with_confidence`.

    onnxruntime computes every output of a graph, even if it is not fetched, but skips a branch that is not taken.
    Confidences need the scores of all pixels, from which the class map follows as well; without confidences the scores
    of pixels are computed only near borders between classes.
    """
    graph = proto.graph
    plain = [o.name for o in graph.output if o.name == PLAIN]
    chosen = ["class_map", "confidence"] if plain else ["confidence"]
    declared = [o for o in graph.output if o.name in chosen]
    for_plain, for_chosen = _ancestors(graph, plain), _ancestors(graph, chosen)
    common = _ancestors(graph, [o.name for o in graph.output if o.name not in (*chosen, PLAIN)])
    common |= for_plain & for_chosen
    asked = [node for node in graph.node if set(node.output) & (for_chosen - common)]
    unasked = [node for node in graph.node if set(node.output) & (for_plain - common)]
    kept = [node for node in graph.node if set(node.output) & common]
    for node in asked:
        node.output[:] = [f"every_{name}" if name in chosen else name for name in node.output]
    unasked += [
        helper.make_node("Shape", ["image"], ["image_count"], start=0, end=1),
        helper.make_node("Concat", ["image_count", "no_pixels"], ["empty_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["empty_shape"], ["no_confidence"],
                         value=helper.make_tensor("zero", TensorProto.UINT8, [1], [0])),
    ]  # fmt: skip
    sizes = helper.make_tensor("no_pixels", TensorProto.INT64, [2], [0, 0])
    everywhere = _renamed(declared, [f"every_{name}" for name in chosen])
    at_borders = _renamed(declared, [*plain, "no_confidence"])
    choice = helper.make_node(
        "If", [FLAG], chosen, name="confidence_if_asked_for",
        then_branch=helper.make_graph(asked, "confidence", [], everywhere),
        else_branch=helper.make_graph(unasked, "no_confidence", [], at_borders, [sizes]),
    )  # fmt: skip
    del graph.node[:]
    graph.node.extend([*kept, choice])
    for output in [o for o in graph.output if o.name == PLAIN]:
        graph.output.remove(output)
    graph.input.append(helper.make_tensor_value_info(FLAG, TensorProto.BOOL, []))
    graph.initializer.append(helper.make_tensor(FLAG, TensorProto.BOOL, [], [False]))


def _renamed(values: list[onnx.ValueInfoProto], names: list[str]) -> list[onnx.ValueInfoProto]:
    copies = [copy.deepcopy(value) for value in values]
    for value, name in zip(copies, names, strict=True):
        value.name = name
    return copies


def _ancestors(graph: onnx.GraphProto, values: list[str]) -> set[str]:
    """Return the names of all values from which the given ones are computed, including these."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    pending = list(values)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in producers:
            pending += producers[name].input
    return found
