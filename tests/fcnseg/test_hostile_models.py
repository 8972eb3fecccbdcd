"""Model files made to do harm: each is refused in one line, before it can."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcnseg.engine import Engine
from fcnseg.errors import ModelFileError
from fcnseg.model_file import METADATA_KEY, read_model_info

BILLION = 2**30
Change = Callable[[onnx.ModelProto], None]


def node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)


def constant(name: str, value: object) -> onnx.NodeProto:
    return node("Constant", [], name, value=numpy_helper.from_array(np.array(value)))


def beginning_with(*nodes: onnx.NodeProto) -> Change:
    """Compute something that nothing needs."""

    def change(model: onnx.ModelProto) -> None:
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *rest])

    return change


def needing(*nodes: onnx.NodeProto) -> Change:
    """Let the heatmap depend on a tensor named `bomb`."""
    total = node("ReduceSum", ["bomb"], "total", keepdims=0)
    nothing = node("Mul", ["total", "nought"], "nothing")

    def change(model: onnx.ModelProto) -> None:
        beginning_with(*nodes, total, constant("nought", np.float32(0)), nothing)(model)
        (last,) = (n for n in model.graph.node if list(n.output) == ["heatmap"])
        last.CopyFrom(node("Add", [last.input[0], "nothing"], "heatmap"))

    return change


def sparse(graph: onnx.GraphProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "values")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [BILLION]))


def function(model: onnx.ModelProto) -> None:
    identity = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(
        helper.make_function("mine", "Same", ["x"], ["y"], [identity], [helper.make_opsetid("", 20)])
    )


def custom_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.example", 1))
    beginning_with(node("Steal", ["image"], "bomb", domain="evil.example"))(model)


# onnxruntime knows this domain without being told.
FUSED = node("Gelu", ["image"], "bomb", domain="com.microsoft")


def endless() -> list[onnx.NodeProto]:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["going"], "still_going")],
        "endless",
        [value("round", TensorProto.INT64, []), value("going", TensorProto.BOOL, [])],
        [value("still_going", TensorProto.BOOL, [])],
    )
    return [constant("always", np.array(True)), helper.make_node("Loop", ["", "always"], [], body=body)]


def branch_on_the_image(model: onnx.ModelProto) -> None:
    """Zeros, which a file is tried on, would not show what the other branch does."""
    branches = [
        helper.make_graph(
            [constant(f"{name}_shape", [size]), node("ConstantOfShape", [f"{name}_shape"], name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, size in (("little", 1), ("much", BILLION))
    ]
    needing(
        node("Cast", ["image"], "floats", to=TensorProto.FLOAT),
        node("ReduceMax", ["floats"], "highest", keepdims=0),
        node("Cast", ["highest"], "is_not_black", to=TensorProto.BOOL),
        node("If", ["is_not_black"], "bomb", then_branch=branches[1], else_branch=branches[0]),
    )(model)


def with_confidence(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the branch that computes confidences."""
    (choice,) = (n for n in model.graph.node if n.op_type == "If")
    (branch,) = (a.g for a in choice.attribute if a.name == "then_branch")
    return branch


def branch_beginning_with(*nodes: onnx.NodeProto) -> Change:
    """Compute something in a branch that nothing needs."""

    def change(model: onnx.ModelProto) -> None:
        branch = with_confidence(model)
        rest = list(branch.node)
        del branch.node[:]
        branch.node.extend([*nodes, *rest])

    return change


def metadata(model: onnx.ModelProto, old: str, new: str) -> None:
    (entry,) = (p for p in model.metadata_props if p.key == METADATA_KEY)
    assert old in entry.value
    entry.value = entry.value.replace(old, new)


def external(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="weights", data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def eight_bytes(*dims: int, kind: int = TensorProto.INT64) -> onnx.TensorProto:
    """Return a tensor of one integer that declares what it likes."""
    return TensorProto(name="weights", data_type=kind, dims=dims, raw_data=bytes(8))


TENSORS: dict[str, tuple[onnx.TensorProto, str]] = {
    "a file beside it": (external("weights.bin"), "data that lies in another file"),
    "a file by its absolute path": (external("/etc/passwd"), "data that lies in another file"),
    "a file above its folder": (external("../../../../etc/passwd"), "data that lies in another file"),
    "a file that it does not name": (
        TensorProto(name="weights", data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL),
        "the tensor 'weights', whose data lies in another file",
    ),
    "dimensions beyond its bytes": (eight_bytes(2**40), "the tensor 'weights' of 1099511627776 elements in 8 bytes"),
    "dimensions beyond all numbers": (eight_bytes(2**62, 2**62), "elements in 8 bytes"),
    "a negative dimension": (eight_bytes(-1), "of a negative size"),
    "text": (eight_bytes(1, kind=TensorProto.STRING), "not a type of plain numbers"),
    "a type that does not exist": (eight_bytes(1, kind=77), "of the type 77"),
    "fewer numbers in a list than it declares": (
        TensorProto(name="weights", data_type=TensorProto.INT64, dims=[BILLION], int64_data=[0, 0, 0]),
        "the tensor 'weights' of 1073741824 elements in 3 bytes",
    ),
}
PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], object]] = {
    "an initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "a constant": lambda model, tensor: beginning_with(node("Constant", [], "unused", value=tensor))(model),
    "an initializer of a branch": lambda model, tensor: with_confidence(model).initializer.append(tensor),
    "a constant of a branch": lambda model, tensor: branch_beginning_with(node("Constant", [], "unused", value=tensor))(
        model
    ),
}
REFUSED_UNREAD: dict[str, tuple[Change, str]] = {
    "a sparse tensor": (lambda model: sparse(model.graph), "a sparse tensor"),
    "a sparse tensor of a branch": (lambda model: sparse(with_confidence(model)), "a sparse tensor"),
    "a function": (function, "functions"),
    "a custom operator": (custom_operator, "operators of 'evil.example'"),
    "an operator of onnxruntime's": (beginning_with(FUSED), "the operator 'com.microsoft.Gelu'"),
    "an operator of onnxruntime's in a branch": (branch_beginning_with(FUSED), "the operator 'com.microsoft.Gelu'"),
    "an endless loop": (beginning_with(*endless()), "a branch or loop beside that on 'with_confidence'"),
    "an endless loop in a branch": (branch_beginning_with(*endless()), "a branch or loop within a branch"),
    "a branch on the image": (branch_on_the_image, "a branch or loop beside that on 'with_confidence'"),
}


def assert_refused_unread(path: Path, words: str) -> None:
    for read in (lambda: Engine(path, "cpu"), lambda: read_model_info(path)):
        with pytest.raises(ModelFileError, match="m.onnx was refused unread: it holds ") as caught:
            read()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def changed(tiny_model: Path, path: Path, change: Change) -> Path:
    model = onnx.load(tiny_model)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("change", "words"), REFUSED_UNREAD.values(), ids=REFUSED_UNREAD.keys())
def test_what_a_model_file_never_holds_is_refused_unread(
    tiny_model: Path, tmp_path: Path, change: Change, words: str
) -> None:
    assert_refused_unread(changed(tiny_model, tmp_path / "m.onnx", change), words)


@pytest.mark.parametrize("put", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize(("tensor", "words"), TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_is_not_numbers_within_the_file_is_refused_unread_wherever_it_lies(
    tiny_model: Path,
    tmp_path: Path,
    put: Callable[[onnx.ModelProto, onnx.TensorProto], object],
    tensor: onnx.TensorProto,
    words: str,
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    assert_refused_unread(changed(tiny_model, tmp_path / "m.onnx", lambda model: put(model, tensor)), words)


def test_wherever_a_file_ends_early_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            Engine(path, "cpu")


def test_a_file_with_any_byte_changed_is_refused_or_opened(tiny_model: Path, tmp_path: Path) -> None:
    """And nothing else: no crash, no other error."""
    data = bytearray(tiny_model.read_bytes())
    random = np.random.default_rng(0)
    path = tmp_path / "bent.onnx"
    outcomes = set()
    for at in random.choice(len(data), 80, replace=False):
        bent = data.copy()
        bent[at] ^= 1 << int(random.integers(8))
        path.write_bytes(bent)
        try:
            Engine(path, "cpu")
            outcomes.add("opened")
        except ModelFileError:
            outcomes.add("refused")
    assert outcomes == {"opened", "refused"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"alignment":4,"minimum":4', '"alignment":1000000000,"minimum":1000000000', "smallest image has 1000000000"),
        ('"lead":0,"trail":0', '"lead":4000000,"trail":0', "smallest image has 4000004 pixels"),
        ('"stride":2', '"stride":0', "geometry.y.stride"),
    ],
)
def test_metadata_that_asks_for_huge_images_is_refused(
    tiny_model: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    path = changed(tiny_model, tmp_path / "m.onnx", lambda model: metadata(model, old, new))
    with pytest.raises(ModelFileError, match=words):
        Engine(path, "cpu")


def test_a_graph_that_answers_in_other_shapes_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    def halve(model: onnx.ModelProto) -> None:
        (last,) = (n for n in model.graph.node if list(n.output) == ["class_map"])
        last.output[0] = "whole"
        model.graph.node.extend(
            [
                *(constant(name, [value]) for name, value in (("from", 0), ("to", 1000), ("axis", 1), ("step", 2))),
                node("Slice", ["whole", "from", "to", "axis", "step"], "class_map"),
            ]
        )

    with pytest.raises(ModelFileError, match=r"answers an image of 4x4 pixels with a class map of \(1, 2, 4\)"):
        Engine(changed(tiny_model, tmp_path / "m.onnx", halve), "cpu")


BOMBS: dict[str, Change] = {
    "ConstantOfShape": needing(constant("shape", [2 * BILLION]), node("ConstantOfShape", ["shape"], "bomb")),
    "Expand": needing(
        constant("one", np.ones(1, np.float32)), constant("shape", [BILLION]), node("Expand", ["one", "shape"], "bomb")
    ),
    "Tile": needing(
        constant("one", np.ones(1, np.float32)), constant("times", [BILLION]), node("Tile", ["one", "times"], "bomb")
    ),
    "Range": needing(
        *(constant(name, np.float32(v)) for name, v in (("from", 0), ("to", BILLION), ("step", 1))),
        node("Range", ["from", "to", "step"], "bomb"),
    ),
    "an outer product": needing(
        constant("column", np.ones((2**15, 1), np.float32)),
        constant("row", np.ones((1, 2**15), np.float32)),
        node("MatMul", ["column", "row"], "bomb"),
    ),
    "doubling thirty times": needing(
        constant("d0", np.ones(1, np.float32)),
        *(node("Concat", [f"d{i}", f"d{i}"], f"d{i + 1}", axis=0) for i in range(29)),
        node("Concat", ["d29", "d29"], "bomb", axis=0),
    ),
    "a size known from the image's channels": needing(
        node("Shape", ["image"], "three", start=3, end=4),
        constant("nineteen", np.int64(19)),
        node("Pow", ["three", "nineteen"], "shape"),
        node("ConstantOfShape", ["shape"], "bomb"),
    ),
    "the image": needing(
        node("Cast", ["image"], "floats", to=TensorProto.FLOAT),
        node("ReduceMax", ["floats"], "highest", keepdims=0),
        constant("shape", [BILLION]),
        node("Expand", ["highest", "shape"], "bomb"),
    ),
    "what nothing needs": beginning_with(constant("shape", [BILLION]), node("ConstantOfShape", ["shape"], "bomb")),
    "the branch with confidence": branch_beginning_with(
        constant("shape", [BILLION]), node("ConstantOfShape", ["shape"], "bomb")
    ),
    "many that are each within bounds": needing(
        constant("shape", [2**23]),
        *(node("ConstantOfShape", ["shape"], f"b{i}") for i in range(40)),
        *(node("ReduceSum", [f"b{i}"], f"s{i}", keepdims=0) for i in range(40)),
        node("Sum", [f"s{i}" for i in range(40)], "bomb"),
    ),
    "one after another": needing(
        constant("shape", [2**23]),
        *(
            part
            for i in range(40)
            for part in (node("ConstantOfShape", ["shape"], f"b{i}"), node("ReduceSum", [f"b{i}"], f"s{i}", keepdims=0))
        ),
        node("Sum", [f"s{i}" for i in range(40)], "bomb"),
    ),
}

TRY = """
import resource, sys
from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import ModelFileError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before = peak()
for path in sys.argv[1:]:
    try:
        Engine(path, "cpu", EngineOptions(threads=1, prove=True))
        print("opened")
    except ModelFileError as error:
        print(peak() - before, error)
"""


def try_in_a_process(*paths: Path) -> list[tuple[int, str]]:
    """Open files one after another, and return for each the peak of the memory taken so far in MB, and the error."""
    done = subprocess.run([sys.executable, "-c", TRY, *paths], capture_output=True, text=True, timeout=300, check=True)
    answers = [line.partition(" ") for line in done.stdout.splitlines()]
    return [(int(peak), error) for peak, _, error in answers]


def test_graphs_that_would_take_gigabytes_are_refused_within_one(tiny_model: Path, tmp_path: Path) -> None:
    paths = [changed(tiny_model, tmp_path / f"{name}.onnx", change) for name, change in BOMBS.items()]
    assert all(path.stat().st_size < 300_000 for path in paths)
    answers = try_in_a_process(*paths)
    for path, (peak, error) in zip(paths, answers, strict=True):
        assert peak < 800, error
        assert error.startswith(f"{path} was refused: "), error
    assert "it computes 1280 MB that do not depend on the image's size" in answers[-1][1]


def field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf that holds bytes."""
    length, size = len(content), b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def test_hundreds_of_thousands_of_empty_declarations_are_refused_unread(tmp_path: Path) -> None:
    """Each takes two bytes of the file, and hundreds where it is read."""
    many = 3_000_000
    contents = {
        "nodes": field(7, b"\x0a\x00" * many),
        "dimensions": field(7, field(5, field(1, b"\x01" * many))),
    }
    paths = [tmp_path / f"{name}.onnx" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    for path, (peak, error) in zip(paths, try_in_a_process(*paths), strict=True):
        assert error == f"{path} was refused unread: it holds more than 150000 fields; export the model again"
        assert peak < 150


@pytest.mark.parametrize("begin", [beginning_with, branch_beginning_with], ids=["the graph", "a branch"])
def test_more_nodes_than_any_net_has_are_refused_unread(
    tiny_model: Path, tmp_path: Path, begin: Callable[..., Change]
) -> None:
    """onnxruntime's time grows with the square of those that read one value."""
    nodes = [node("Identity", ["image"], f"n{i}") for i in range(10_001)]
    path = changed(tiny_model, tmp_path / "m.onnx", begin(*nodes))
    with pytest.raises(ModelFileError, match=r"was refused unread: it holds \d+ nodes, where 10000 are the most"):
        Engine(path, "cpu")


def test_the_command_tells_a_hostile_file_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"is not looked at")
    beside = external("weights.bin")
    for name, change in (("beside", lambda model: model.graph.initializer.append(beside)), ("bomb", BOMBS["Expand"])):
        path = changed(tiny_model, tmp_path / f"{name}.onnx", change)
        done = subprocess.run(
            [sys.executable, "-m", "fcnseg", "segment", path, tmp_path / "photo.png", tmp_path / "mask.png"],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == ModelFileError.exit_code == 2
        assert done.stderr.startswith(f"fcnseg: error: {path} was refused")
        assert done.stderr.count("\n") == 1
        assert not done.stdout
        assert not (tmp_path / "mask.png").exists()


def test_what_the_exporter_wrote_is_opened() -> None:
    root = Path(__file__).parents[2]
    paths = [path for folder in ("tests/golden", "results") for path in (root / folder).glob("*.onnx")]
    assert len(paths) >= 2
    for path in paths:
        Engine(path, "cpu")


def test_messages_that_lie_very_deep_in_each_other_are_refused(tmp_path: Path) -> None:
    """Each of three bytes and more: a reader that calls itself for each would run out of stack in a small file."""
    graph = b""
    for _ in range(400):  # a graph in an attribute of a node of a graph
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "deep.onnx").write_bytes(field(7, graph))
    with pytest.raises(ModelFileError, match="messages more than 32 deep in each other"):
        read_model_info(tmp_path / "deep.onnx")
