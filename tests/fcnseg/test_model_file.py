import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcnseg.engine import Engine
from fcnseg.errors import ModelFileError
from fcnseg.layers import Layer
from fcnseg.model_file import METADATA_KEY, ParityRecord, dump_info, parse_info, read_model_info
from tests.tiny_model import tiny_info

LAYERS = (
    Layer("conv", "conv", "2x2, stride 2", None, (3, 112, 112), (2, 2), (2, 2), 39),
    Layer("pool()", "pool", "mean of the whole map", None, (3, 1, 1), None, None, 0),
    Layer("fc", "fc", "3 filters of 3x1x1", "Linear 3 -> 3", (3, 112, 112), (2, 2), (2, 2), 12),
)


def with_metadata(tiny_model: Path, path: Path, text: str | None) -> Path:
    model = onnx.load(tiny_model)
    del model.metadata_props[:]
    if text is not None:
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def test_metadata_survives_json() -> None:
    info = dataclasses.replace(
        tiny_info(licence="CC0"),
        parity=(ParityRecord("torch and onnxruntime", 1e-6),),
        global_context=("se.0", "se.1"),
        layers=LAYERS,
    )
    assert parse_info(dump_info(info), "here") == info


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["variant"], "fcn64s", "variant"),
        (["format"], 2, "format"),
        (["geometry", "y", "stride"], 0, "geometry.y.stride"),
        (["geometry", "x", "alignment"], "wide", "geometry.x.alignment"),
        (["geometry", "x", "minimum"], 3, "geometry.x"),
        (["label_map", "classes", 1, "id"], 7, "label_map"),
        (["label_map", "classes", 1, "colour"], [0, 0, 256], "label_map.classes.1.colour.2"),
        (["label_map", "ignore_id"], 0, "label_map"),
        (["mean"], [0.5], "mean"),
        (["class_map_at"], None, "class_map_at"),
        (["layers", 1, "kind"], "attention", "layers.1.kind"),
        (["layers", 2, "parameters"], -1, "layers.2.parameters"),
    ],
)
def test_wrong_metadata_is_refused_naming_the_field(path: list[str | int], value: object, field: str) -> None:
    document = json.loads(dump_info(dataclasses.replace(tiny_info(), layers=LAYERS)))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ModelFileError, match=rf"m\.onnx: its fcnseg metadata is not valid at {field}\S*: ") as raised:
        parse_info(json.dumps(document), "m.onnx")
    assert "\n" not in str(raised.value)


def test_metadata_that_tells_no_layers_is_valid() -> None:
    document = json.loads(dump_info(tiny_info()))
    del document["layers"]
    assert parse_info(json.dumps(document), "m.onnx") == tiny_info()


def test_missing_metadata_fields_are_named() -> None:
    document = json.loads(dump_info(tiny_info()))
    del document["geometry"]["y"]["lead"]
    with pytest.raises(ModelFileError, match=r"geometry\.y\.lead: Field required"):
        parse_info(json.dumps(document), "m.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_metadata_that_is_no_document_is_refused(tiny_model: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelFileError, match="its fcnseg metadata is not valid at the document"):
        Engine(with_metadata(tiny_model, tmp_path / "m.onnx", text), "cpu")


def test_an_onnx_file_without_our_metadata_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"without the metadata property 'fcnseg'.*'fcnseg export'"):
        Engine(with_metadata(tiny_model, tmp_path / "m.onnx", None), "cpu")


def test_an_onnx_file_with_other_inputs_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: dump_info(tiny_info())})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="has inputs x and outputs y where a model file has image and class_map,"):
        Engine(tmp_path / "m.onnx", "cpu")


def test_metadata_of_another_number_of_classes_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for class_count in (2, 300):
        path = with_metadata(tiny_model, tmp_path / "m.onnx", dump_info(tiny_info(class_count)))
        with pytest.raises(ModelFileError, match=f"names {class_count} classes, which its outputs"):
            Engine(path, "cpu")


def test_metadata_is_read_from_the_file(tiny_model: Path) -> None:
    info = Engine(tiny_model, "cpu").info
    assert info == tiny_info()
    assert [c.name for c in info.label_map.classes] == ["red", "green", "blue"]
    assert np.array_equal(info.label_map.palette[:3], np.eye(3) * 255)


def test_metadata_can_be_read_without_an_engine(tiny_model: Path) -> None:
    assert read_model_info(tiny_model) == tiny_info()


def test_a_path_that_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    for name, reason in (("", "is a folder"), ("none.onnx", "does not exist"), ("text.onnx", "is not an ONNX file")):
        with pytest.raises(ModelFileError, match=reason) as raised:
            read_model_info(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_name_that_onnxruntime_cannot_open_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m\udcff.onnx"
    path.write_bytes(tiny_model.read_bytes())
    with pytest.raises(ModelFileError) as caught:
        Engine(path, "cpu")
    assert str(caught.value) == f"model file {str(path)!r} is not named in UTF-8, as onnxruntime needs; rename it"


def test_a_heatmap_of_other_axes_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    del model.graph.output[1].type.tensor_type.shape.dim[1:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="do not fit|cannot open|can open"):
        read_model_info(tmp_path / "model.onnx")


def test_metadata_that_is_no_text_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.read_bytes().replace(b'"architecture"', b'\x80architecture"'))
    with pytest.raises(ModelFileError, match="no UTF-8 text"):
        read_model_info(path)


@pytest.mark.parametrize("name", [b"class_map", b"Shape", b"with_confidence"])
def test_names_that_are_no_text_are_told_in_one_line(tiny_model: Path, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.read_bytes().replace(name, b"\xf0" + name[1:]))
    with pytest.raises(ModelFileError, match=r"can open: its \w+ has no UTF-8 text for its \w+$"):
        read_model_info(path)


def test_a_broken_file_is_told_of_in_the_error_alone(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model.read_bytes().replace(b"\x05image\x12", b"\x05\xffmage\x12", 1))
    for read in (read_model_info, lambda path: Engine(path, "cpu")):
        with pytest.raises(ModelFileError):
            read(path)
    assert capfd.readouterr() == ("", "")
