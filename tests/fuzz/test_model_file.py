"""Model files of strangers: opened, or refused with a ModelFileError; never a crash, nor a run without end."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import ModelFileError
from fcnseg.model_file import dump_info, parse_info
from tests.fuzz.law import require_line
from tests.fuzz.mutations import examples, mutated
from tests.tiny_model import tiny_info, write_tiny_model

_PATIENCE_S = 60


class Opener:
    """A process that opens model files, and another when it has died."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "model.onnx"
        self._process: subprocess.Popen[str] | None = None

    def open(self, data: bytes) -> str:
        """Return how a file was taken; its end, where the process ended."""
        self._path.write_bytes(data)
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz.model_opener"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._path}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        answer = self._process.stdout.readline().rstrip("\n") if ready else f"no answer within {_PATIENCE_S} s"
        if not answer or not ready:
            self.close()
        return answer or "the process died"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    opener = Opener(tmp_path_factory.mktemp("models"))
    yield opener
    opener.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("sound") / "tiny.onnx").read_bytes()


def require_law(answer: str) -> None:
    kind, _, why = answer.partition(" ")
    assert kind in {"opened", "refused"}, answer
    if kind == "refused":
        require_line(ValueError(why), longest=2000)  # what onnxruntime says stands in it


def test_a_sound_file_is_opened(opener: Opener, model: bytes) -> None:
    assert opener.open(model) == "opened"


@examples(60)
@given(st.data())
def test_a_changed_file_is_opened_or_refused(opener: Opener, model: bytes, data: st.DataObject) -> None:
    require_law(opener.open(data.draw(mutated([model]))))


NAMES = ["image", "with_confidence", "class_map", "heatmap", "confidence", "", "t1", "t5", "no such tensor"]


@examples(40)
@given(st.data())
def test_a_changed_graph_is_opened_or_refused(opener: Opener, model: bytes, data: st.DataObject) -> None:
    """A file that onnx can read, with some of its parts removed, doubled, renamed or made odd."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    for _ in range(data.draw(st.integers(1, 3))):
        node = graph.node[data.draw(st.integers(0, len(graph.node) - 1))]
        match data.draw(
            st.sampled_from(["operator", "input", "output", "attribute", "remove", "shape", "tensor", "opset"])
        ):
            case "operator":
                node.op_type = data.draw(
                    st.sampled_from(["Conv", "Loop", "If", "Resize", "Slice", "Pad", "Gemm", "NoOp"])
                )
            case "input" if node.input:
                node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(st.sampled_from(NAMES))
            case "output":
                node.output[0] = data.draw(st.sampled_from(NAMES))
            case "attribute" if node.attribute:
                attribute = node.attribute[data.draw(st.integers(0, len(node.attribute) - 1))]
                attribute.i = data.draw(st.sampled_from([-(2**63), -1, 0, 2, 2**31, 2**63 - 1]))
                attribute.ints[:] = [attribute.i for _ in attribute.ints]
            case "remove":
                graph.node.remove(node)
            case "shape":
                values = [*graph.input, *graph.output]
                tensor = values[data.draw(st.integers(0, len(values) - 1))].type.tensor_type
                tensor.elem_type = data.draw(st.integers(0, 20))
                tensor.shape.dim.add().dim_value = data.draw(st.sampled_from([-1, 0, 3, 2**40]))
            case "tensor":
                weight = graph.initializer[data.draw(st.integers(0, len(graph.initializer) - 1))]
                weight.dims[:] = data.draw(st.lists(st.sampled_from([0, 1, 3, -1, 2**20, 2**40]), max_size=4))
            case "opset":
                proto.opset_import[0].version = data.draw(st.integers(0, 40))
    require_law(opener.open(proto.SerializeToString()))


def paths_of(value: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if before:
        yield before
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths_of(part, (*before, key))


INFO = json.loads(dump_info(tiny_info()))
PATHS = list(paths_of(INFO))
ODD = st.sampled_from([None, -1, 0, 1, 2**31, 2**70, 1e308, "", "word", "\n", "\ud800", [], {}, [[[]]], True])


@examples(40)
@given(st.data())
def test_changed_metadata_is_read_or_refused(data: st.DataObject) -> None:
    document = json.loads(json.dumps(INFO))
    for *before, last in data.draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2)):
        parent = document
        for key in before:
            parent = parent[key] if isinstance(parent, (dict, list)) and key in _keys(parent) else {}
        if isinstance(parent, (dict, list)) and last in _keys(parent):
            parent[last] = data.draw(ODD)  # type: ignore[index]
    text = data.draw(st.just(json.dumps(document)) | st.just(json.dumps(document)[:-9]) | st.just("[" * 5000))
    try:
        assert len(parse_info(text, "here").label_map) > 0
    except ModelFileError as error:
        require_line(error)


def _keys(value: dict[Any, Any] | list[Any]) -> Any:
    return value if isinstance(value, dict) else range(len(value))
