"""Read the nodes of an ONNX graph and their dependencies, without the weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fcnseg.errors import ModelFileError
from fcnseg.model_grammar import MODEL
from fcnseg.protobuf_reader import BrokenError, Part, Reader, UnfitError

SHAPE_READERS = {"Shape", "Size"}
"""Operators that do not read their input's data, whatever its size."""


@dataclass(frozen=True)
class GraphNode:
    """A node of a graph.

    Attributes:
        name: Its name; may be empty.
        operator: What it computes, such as `Conv`.
        inputs: Tensors that it reads, including those that its branches read.
        outputs: Tensors that it writes.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(path: Path) -> list[GraphNode]:
    """Read the nodes of an ONNX file in their order, without those within branches.

    Raises:
        ModelFileError: The file is not an ONNX file.
    """
    try:
        with path.open("rb") as file:
            reader = Reader(file)
            (graph,) = reader.message(MODEL, reader.whole).all("graph")
            return [_read_node(node, reader) for node in graph.all("nodes")]
    except (BrokenError, UnfitError, ValueError) as error:
        raise ModelFileError(f"the graph in {path} cannot be read: {error}; export the model again") from error


def _read_node(node: Part, reader: Reader) -> GraphNode:
    inputs = reader.texts(node, "inputs")
    for branch in (graph for attribute in node.all("attributes") for graph in attribute.all("graph")):
        inputs += [name for inner in branch.all("nodes") for name in reader.texts(inner, "inputs")]
    outputs = reader.texts(node, "outputs")
    return GraphNode(
        reader.text(node, "name"),
        reader.text(node, "operator"),
        tuple(filter(None, inputs)),  # an omitted input has an empty name
        tuple(filter(None, outputs)),
    )


class Node(Protocol):
    """Anything that reads and writes tensors, by their names."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the tensors that the node reads."""

    @property
    def outputs(self) -> Sequence[str]:
        """Tensors that it writes."""


def behind(nodes: Sequence[Node], outputs: Iterable[str]) -> set[int]:
    """Return the positions of the nodes on which outputs depend; `nodes` must be in topological order."""
    wanted, found = set(outputs), set()
    for position in reversed(range(len(nodes))):
        if wanted.intersection(nodes[position].outputs):
            found.add(position)
            wanted.update(nodes[position].inputs)
    return found


def that_see(nodes: Sequence[GraphNode], tensor: str) -> set[int]:
    """Return the positions of the nodes that depend on a tensor's values, not only on its shape."""
    seen, found = {tensor}, set()
    for position, node in enumerate(nodes):
        if node.operator not in SHAPE_READERS and seen.intersection(node.inputs):
            found.add(position)
            seen.update(node.outputs)
    return found
