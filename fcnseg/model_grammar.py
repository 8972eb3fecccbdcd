"""What a model file may contain, checked before anything of it is run or memory is allocated for it.

An ONNX file can contain much that a model file never needs: tensors in other files, operator libraries, loops, and
declared sizes of any magnitude. This grammar accepts what `fcnseg export` writes, and everything else is refused. The
bytes of weights are counted, not read. Names must be UTF-8: onnxruntime's errors, which quote them, are lost otherwise.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

from fcnseg.errors import ModelFileError
from fcnseg.protobuf_reader import BrokenError, Kind, Message, Part, Reader, UnfitError

_FLAG = "with_confidence"
_MOST_NODES = 10_000
"""onnxruntime's time may grow with their square; a ResNet-50 has 248."""
_DOMAINS = frozenset({"", "ai.onnx"})
_BYTES_OF_TYPE = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of an element by `TensorProto.DataType`: numbers and truth values of whole bytes."""
_LARGEST_INT = 2**63
_LONGEST_NAME = 60
_MOST_DIMS = 6

_ENTRY = Message("property", {1: ("key", "bytes"), 2: ("value", "bytes")})
_DIMENSION = Message("dimension", {1: ("value", "number"), 2: ("name", "text"), 3: ("denotation", "bytes")})
_SHAPE = Message("shape", {}, {1: ("dimension", _DIMENSION)})
_TENSOR_TYPE = Message("tensor type", {1: ("element", "number"), 2: ("shape", _SHAPE)})
_TYPE = Message("type", {1: ("tensor", _TENSOR_TYPE), 6: ("denotation", "bytes")})
_VALUE = Message("value", {1: ("name", "text"), 2: ("type", _TYPE), 3: ("doc", "bytes")}, {4: ("properties", _ENTRY)})
_TENSOR = Message(
    "tensor",
    {
        2: ("type", "number"),
        8: ("name", "text"),
        9: ("raw", "bytes"),
        12: ("doc", "bytes"),
        14: ("location", "number"),
    },
    {
        1: ("dims", "number"),
        4: ("data", "bytes"),
        5: ("data", "bytes"),
        7: ("data", "bytes"),
        10: ("data", "bytes"),
        11: ("data", "bytes"),
        16: ("properties", _ENTRY),
    },
    {6: "text", 13: "data that lies in another file"},
)
_OPERATORS = Message("set of operators", {1: ("domain", "text"), 2: ("version", "number")})
_SPARSE = {15: "a sparse tensor"}
_ATTRIBUTES: dict[int, tuple[str, Kind]] = {}
_ATTRIBUTE = Message(
    "attribute",
    _ATTRIBUTES,
    {7: ("values", "bytes"), 8: ("values", "bytes"), 9: ("values", "bytes")},
    {10: "a list of tensors", 11: "a list of graphs", 14: "a type", 15: "a list of types", 22: "a sparse tensor",
     23: "a list of sparse tensors", 21: "a reference to a function's attribute"},
)  # fmt: skip
_NODE = Message(
    "node",
    {3: ("name", "text"), 4: ("operator", "text"), 6: ("doc", "bytes"), 7: ("domain", "text")},
    {1: ("inputs", "text"), 2: ("outputs", "text"), 5: ("attributes", _ATTRIBUTE), 9: ("properties", _ENTRY)},
    {8: "an overload", 10: "settings for several devices"},
)
_GRAPH = Message(
    "graph",
    {2: ("name", "text"), 10: ("doc", "bytes")},
    {
        1: ("nodes", _NODE),
        5: ("tensors", _TENSOR),
        11: ("inputs", _VALUE),
        12: ("outputs", _VALUE),
        13: ("values", _VALUE),
        16: ("properties", _ENTRY),
    },
    {14: "notes on quantization", **_SPARSE},
)
_ATTRIBUTES.update(
    {
        1: ("name", "text"),
        2: ("float", "number"),
        3: ("int", "number"),
        4: ("text", "bytes"),
        5: ("tensor", _TENSOR),
        6: ("graph", _GRAPH),
        13: ("doc", "bytes"),
        20: ("type", "number"),
    }
)
MODEL = Message(
    "model",
    {
        1: ("ir_version", "number"),
        2: ("producer", "bytes"),
        3: ("producer_version", "bytes"),
        4: ("domain", "bytes"),
        5: ("version", "number"),
        6: ("doc", "bytes"),
        7: ("graph", _GRAPH),
    },
    {8: ("operators", _OPERATORS), 14: ("properties", _ENTRY)},
    {20: "what to train", 25: "functions", 26: "settings for several devices"},
)


def require_plain(path: Path) -> None:
    """Check that a file is a self-contained model of plain tensors and ONNX operators, each of which runs at most once.

    Tensors hold numbers and lie in the file, with as many bytes as they declare. Operators are ONNX's own; there are no
    loops, functions or sparse tensors, and the only branch is the one on `with_confidence`. Whatever its size, a file
    has at most 150 thousand fields and 10 thousand nodes.

    Raises:
        ModelFileError: It is not such a model; the message says what was found.
    """
    try:
        with path.open("rb") as file:
            reader = Reader(file)
            _require_model(reader.message(MODEL, reader.whole), reader)
    except BrokenError as error:
        raise ModelFileError(f"{path} is not an ONNX file that onnxruntime can open: {error}") from error
    except UnfitError as error:
        raise ModelFileError(f"{path} was refused unread: it holds {error}; export the model again") from error
    except OSError as error:
        raise ModelFileError(f"model file {path} cannot be read: {error.strerror}; check the path") from error


def _require_model(model: Part, reader: Reader) -> None:
    graphs = model.all("graph")
    if not graphs:
        raise BrokenError("it has no graph")
    for operators in model.all("operators"):
        if (domain := reader.text(operators, "domain")) not in _DOMAINS:
            raise UnfitError(f"operators of {domain[:_LONGEST_NAME]!r}, which are not ONNX's own")
    _require_nodes(graphs[0].all("nodes"))
    _require_tensors(graphs[0].all("tensors"), reader)
    for node in graphs[0].all("nodes"):
        _require_node(node, reader)
        for branch in (a for attribute in node.all("attributes") for a in attribute.all("graph")):
            if reader.text(node, "operator") != "If" or reader.texts(node, "inputs") != [_FLAG]:
                raise UnfitError(f"a branch or loop beside that on {_FLAG!r}")
            _require_nodes(branch.all("nodes"))
            _require_tensors(branch.all("tensors"), reader)
            for inner in branch.all("nodes"):
                _require_node(inner, reader)
                if any(attribute.all("graph") for attribute in inner.all("attributes")):
                    raise UnfitError("a branch or loop within a branch")


def _require_nodes(nodes: Sequence[Part]) -> None:
    if len(nodes) > _MOST_NODES:
        raise UnfitError(f"{len(nodes)} nodes, where {_MOST_NODES} are the most")


def _require_node(node: Part, reader: Reader) -> None:
    if (domain := reader.text(node, "domain")) not in _DOMAINS:
        operator = f"{domain}.{reader.text(node, 'operator')}"
        raise UnfitError(f"the operator {operator[:_LONGEST_NAME]!r}, which is not ONNX's own")
    _require_tensors((t for attribute in node.all("attributes") for t in attribute.all("tensor")), reader)


def _require_tensors(tensors: Iterable[Part], reader: Reader) -> None:
    """Check that tensors are numbers that the file holds."""
    for tensor in tensors:
        name = f"the tensor {reader.text(tensor, 'name')[:_LONGEST_NAME]!r}"
        if tensor.number("location"):
            raise UnfitError(f"{name}, whose data lies in another file")
        width = _BYTES_OF_TYPE.get(tensor.number("type"))
        if width is None:
            raise UnfitError(f"{name} of the type {tensor.number('type')}, which is not a type of plain numbers")
        dims = tensor.numbers.get("dims", [])
        if any(size >= _LARGEST_INT for size in dims):
            raise UnfitError(f"{name} of a negative size")
        elements = prod(dims)
        raw = sum(span.size for span in tensor.spans.get("raw", []))
        listed = sum(span.size for span in tensor.spans.get("data", [])) + len(tensor.numbers.get("data", []))
        # A number that is listed takes a byte at least; onnxruntime counts them.
        if elements * width != raw if raw else elements > listed:
            shape = "x".join(map(str, dims[:_MOST_DIMS])) or "1"
            raise UnfitError(f"{name} of {shape} elements in {raw + listed} bytes")
