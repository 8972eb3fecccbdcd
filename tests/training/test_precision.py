from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

import fcnseg
from fcnseg.engine import Engine
from fcnseg.errors import UsageError
from fcnseg.model_card import PrecisionRecord, to_markdown
from fcnseg.model_file import ModelInfo, read_model_info
from fcnseg.types import LabelMap
from tests.training.small_nets import Residual, seeded
from tests.training.test_model import CLASSES, fcn_model
from training.card import make_card
from training.config import TrainConfig
from training.data import open_dataset
from training.export import export, replace_card
from training.model import SegmentationModel
from training.precision import calibration_images, compare
from training.run import Run, RunRecord
from training.samples import Sample
from training.scenes import write_scenes

LABELS = LabelMap.from_names([f"class {i}" for i in range(CLASSES)])


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return fcn_model(seeded(Residual), (64, 64))


@pytest.fixture(scope="module")
def files(model: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("precisions")
    found = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8")}
    export(model, LABELS, found["fp32"])
    export(model, LABELS, found["fp16"], precision="fp16")
    export(model, LABELS, found["int8"], precision="int8", calibration=pictures(8))
    return found


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Soft noise, upright and across: the images that a net sees have neighbours that are alike."""
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (8, 12, 3) if i % 2 else (12, 8, 3), np.uint8) for i in range(count)]
    return [np.ascontiguousarray(image.repeat(12, 0).repeat(12, 1)) for image in coarse]


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.98), ("int8", 0.9)])
def test_masks_are_nearly_those_of_32_bits(files: dict[str, Path], precision: str, least: float) -> None:
    engines = [Engine(files[name], "cpu") for name in ("fp32", precision)]
    assert [engine.precision for engine in engines] == ["fp32", precision]
    for image in pictures(3):
        expected, found = (engine.run(image[None], confidence=True) for engine in engines)
        assert found.heatmap.dtype == np.float32
        assert found.confidence is not None
        assert (found.class_map == expected.class_map).mean() >= least
        np.testing.assert_array_equal(engines[1].run(image[None]).class_map, found.class_map)


def test_weights_lie_in_the_file_as_they_are_computed_with(files: dict[str, Path]) -> None:
    kinds = {}
    for name, path in files.items():
        graph = onnx.load(path).graph
        weights = [i for i in graph.initializer if ".weight" in i.name and len(i.dims) == 4]
        kinds[name] = {initializer.data_type for initializer in weights}
    assert kinds["fp32"] == {TensorProto.FLOAT}
    assert kinds["fp16"] == {TensorProto.FLOAT16}
    assert TensorProto.INT8 in kinds["int8"]
    assert files["fp16"].stat().st_size < files["fp32"].stat().st_size


def test_values_between_convolutions_of_8_bits_stay_so(files: dict[str, Path]) -> None:
    """ReLU becomes the bound of its layer's range, and what is added is added as integers."""
    fp32, int8 = (list(onnx.load(files[name]).graph.node) for name in ("fp32", "int8"))
    third = [i for i, node in enumerate(fp32) if node.op_type == "Conv"][2]
    floats = {node.name for node in fp32[:third]}
    bounded = [{node.name for node in nodes if node.op_type == "Relu"} - floats for nodes in (fp32, int8)]
    assert bounded[0]
    assert not bounded[1]
    reads = {name: node.op_type for node in int8 for name in node.output}
    added = [[reads.get(name) for name in node.input] for node in int8 if node.op_type == "Add"]
    assert added.count(["DequantizeLinear"] * 2) == 1


def test_the_file_tells_its_precision_and_its_proof(files: dict[str, Path]) -> None:
    infos: dict[str, ModelInfo] = {name: read_model_info(path) for name, path in files.items()}
    assert {name: info.precision for name, info in infos.items()} == {name: name for name in files}
    assert infos["fp16"].parity[-1].relative_error < 2e-2
    assert infos["fp16"].parity[-1].compared == "onnxruntime with PyTorch"
    assert infos["int8"].parity[-1].relative_error < 1e-4  # of the file that it was made of
    assert infos["int8"].parity[-1].compared == "onnxruntime with PyTorch, in fp32"


def test_a_file_of_8_bit_integers_is_made_in_silence(
    model: SegmentationModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The runtime writes its warnings past Python."""
    export(model, LABELS, tmp_path / "m.onnx", precision="int8", calibration=pictures(1))
    assert tuple(capfd.readouterr()) == ("", "")


def test_the_segmenter_and_batches_take_them(files: dict[str, Path]) -> None:
    images = pictures(5)[::2]
    for path in files.values():
        segmenter = fcnseg.load(path, "cpu")
        for image, answer in zip(images, segmenter.segment_batch(images), strict=True):
            np.testing.assert_array_equal(answer.class_map, segmenter.segment(image).class_map)


@pytest.mark.parametrize(("total", "count"), [(127, 64), (10, 4), (5, 64), (64, 64)])
def test_calibration_images_are_spread_over_the_split(tmp_path: Path, total: int, count: int) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(total)]
    for i, path in enumerate(paths):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(path)
    images = calibration_images([Sample(path.name, path, None) for path in paths], count)
    found = [int(images[i][0, 0, 0]) for i in range(len(images))]
    assert len(found) == min(total, count)
    gaps = np.diff(found, prepend=-total / len(found) / 2, append=total)
    assert gaps.max() <= 2 * total / len(found) + 1
    assert gaps.min() > 0


def test_no_images_to_calibrate_with_are_refused(model: SegmentationModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no images to calibrate 8-bit integers with"):
        export(model, LABELS, tmp_path / "m.onnx", precision="int8")
    assert not (tmp_path / "m.onnx").exists()


def test_a_store_of_its_own_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be stored as fp16 where the net computes in int8"):
        export(model, LABELS, tmp_path / "m.onnx", store="fp16", precision="int8", calibration=pictures(1))


def test_a_file_is_measured_beside_32_bits_and_its_card_tells_it(
    model: SegmentationModel, files: dict[str, Path], tmp_path: Path
) -> None:
    list(write_scenes(tmp_path / "scenes", {"train": 4, "val": 2}, size=64))
    dataset = open_dataset(tmp_path / "scenes")
    assert len(calibration_images(dataset.split("train"), 3)) == 3
    assert len(calibration_images(dataset.split("train"), 9)) == 4
    val = dataset.split("val")
    record = compare(files["int8"], files["fp32"], val, None, "cpu")
    assert (record.images, record.device) == (2, "cpu")
    assert compare(files["fp32"], files["fp32"], val, None, "cpu").mean_iou == record.fp32_mean_iou
    run = Run(Path("best.ckpt"), model, RunRecord(
        TrainConfig("scenes", "net"), LABELS, (0.5,) * 3, (0.5,) * 3, "f" * 64, metrics={"mean_iou": 0.5},
    ))  # fmt: skip
    told = PrecisionRecord(2, 0.5, 0.52, 1.5, "cpu")
    card = replace(make_card(run, "m.onnx", precision="int8"), precision=told)
    info = replace_card(files["int8"], card, tmp_path / "m.onnx")
    assert read_model_info(tmp_path / "m.onnx").card == card
    text = to_markdown(info, card, "m")
    assert "Computed in int8: on 2 validation images mean IoU 0.5000, in fp32 0.5200 (-0.0200); 1.50 times as" in text
    assert "fcnseg export run -o m.onnx --precision int8" in text
