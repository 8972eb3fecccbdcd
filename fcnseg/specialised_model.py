"""Rewrites a model file without its branch: whether it computes confidences is decided when it is opened, not per run.

A model file branches on its optional input `with_confidence`, and CUDA graphs cannot contain branches. Here the branch
is replaced by one of its sides, always the one with confidences: the other computes the same class map, bit for bit,
only where classes meet, in shapes that depend on the image, which CUDA graphs cannot contain either. Nodes that are no
longer needed are removed, since onnxruntime would run them.

The file is rewritten as bytes (the format: https://protobuf.dev/programming-guides/encoding), so that weights are
copied and never parsed. Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from fcnseg.graph import behind
from fcnseg.model_file import CONFIDENCE

_FLAG = "with_confidence"
_GRAPH = 7  # of a model
_NODES, _TENSORS, _INPUTS, _OUTPUTS = 1, 5, 11, 12  # of a graph
_NODE_INPUT, _NODE_OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5  # of a node
_TENSOR_NAME, _NAME = 8, 1  # of a tensor; of a value and of an attribute
_ATTRIBUTE_GRAPH = 6
_BYTES = 2  # the wire type of length-delimited fields


class _Field(NamedTuple):
    """A field of a message: its number, its start, and the position of its value."""

    number: int
    start: int
    value: int
    end: int


class _Node(NamedTuple):
    inputs: list[str]
    outputs: list[str]
    encoded: memoryview | bytes


def write_specialised(data: memoryview, path: Path, *, confidence: bool) -> None:
    """Write a model file with `image` as its only input, which computes confidences always or never.

    Args:
        data: The bytes of a model file that has passed `model_grammar`.
        path: The specialised file to write.
        confidence: Whether it computes confidences; if not, it does not have that output.
    """
    with path.open("wb") as file:
        for field in _fields(data, 0, len(data)):
            if field.number == _GRAPH:
                parts = _graph_parts(data, field, confidence=confidence)
                file.write(_header(_GRAPH, sum(map(len, parts))))
                file.writelines(parts)
            else:
                file.write(data[field.start : field.end])


def _graph_parts(data: memoryview, graph: _Field, *, confidence: bool) -> list[memoryview | bytes]:
    """Return the encoded fields of a graph whose branch is replaced."""
    nodes: list[_Node] = []
    others: list[memoryview | bytes] = []
    outputs: set[str] = set()
    for field in _fields(data, graph.value, graph.end):
        if field.number == _NODES:
            if _texts(data, field, _OPERATOR) == ["If"]:
                inlined, tensors = _branch(data, field)
                nodes += inlined
                others += tensors
            else:
                nodes.append(_node(data, field))
            continue
        (name, *_) = _texts(data, field, _TENSOR_NAME if field.number == _TENSORS else _NAME) or [""]
        if (field.number in {_TENSORS, _INPUTS} and name == _FLAG) or (
            field.number == _OUTPUTS and name == CONFIDENCE and not confidence
        ):
            continue
        if field.number == _OUTPUTS:
            outputs.add(name)
        others.append(data[field.start : field.end])
    return [*(nodes[position].encoded for position in sorted(behind(nodes, outputs))), *others]


def _branch(data: memoryview, choice: _Field) -> tuple[list[_Node], list[memoryview | bytes]]:
    """Return the nodes and tensors of the side with confidences; its outputs get the names of the branch's outputs."""
    (graph,) = (
        field
        for attribute in _fields(data, choice.value, choice.end)
        if attribute.number == _ATTRIBUTE and _texts(data, attribute, _NAME) == ["then_branch"]
        for field in _fields(data, attribute.value, attribute.end)
        if field.number == _ATTRIBUTE_GRAPH
    )
    fields = list(_fields(data, graph.value, graph.end))
    nodes = [_node(data, field) for field in fields if field.number == _NODES]
    inner = chain.from_iterable(_texts(data, field, _NAME) for field in fields if field.number == _OUTPUTS)
    for name, outer in zip(inner, _texts(data, choice, _NODE_OUTPUT), strict=True):
        copied = _text(_NODE_INPUT, name) + _text(_NODE_OUTPUT, outer) + _text(_OPERATOR, "Identity")
        nodes.append(_Node([name], [outer], _header(_NODES, len(copied)) + copied))
    return nodes, [data[field.start : field.end] for field in fields if field.number == _TENSORS]


def _node(data: memoryview, field: _Field) -> _Node:
    return _Node(_texts(data, field, _NODE_INPUT), _texts(data, field, _NODE_OUTPUT), data[field.start : field.end])


def _texts(data: memoryview, message: _Field, number: int) -> list[str]:
    """Return the texts in a message's fields with a given number."""
    return [
        bytes(data[field.value : field.end]).decode(errors="surrogateescape")
        for field in _fields(data, message.value, message.end)
        if field.number == number
    ]


def _fields(data: memoryview, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        start = at
        tag, value = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            length, value = _varint(data, value)
            at = value + length
        elif wire == 0:
            _, at = _varint(data, value)
        else:
            at = value + (8 if wire == 1 else 4)
        yield _Field(tag >> 3, start, value, at)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _text(number: int, text: str) -> bytes:
    encoded = text.encode(errors="surrogateescape")
    return _header(number, len(encoded)) + encoded


def _header(number: int, length: int) -> bytes:
    """Return the encoded tag and length of a length-delimited field."""
    encoded = bytearray()
    for value in (number << 3 | _BYTES, length):
        rest = value
        while rest > 127:
            encoded.append(rest & 127 | 128)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)
