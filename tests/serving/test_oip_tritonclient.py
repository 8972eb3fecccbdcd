"""Triton's own client, as it is published, works with the server."""

import base64
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from numpy.typing import NDArray

import fcnseg
from fcnseg import masks
from serving.oip import inference_pb2 as pb
from serving.registry import ModelRegistry
from tests.contract.descriptor_lines import describe_file
from tests.running_server import CPU_CONFIG, running_server
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 9, 7, 3), np.uint8)
PIXELS[..., 1] //= 256 // 2  # so that the classes of the larger model occur
READY, UNAVAILABLE = {"state": "READY"}, {"state": "UNAVAILABLE", "reason": "not loaded"}


@dataclass(frozen=True)
class Session:
    report: dict[str, Any]
    folder: Path

    def result(self, name: str) -> NDArray[Any]:
        return np.load(self.folder / f"{name}.npy", allow_pickle=True)

    def expect(self, model: str, **options: bool) -> list[fcnseg.Segmentation]:
        segmenter = fcnseg.load(self.folder / "repository" / model / "model.onnx", "cpu")
        return [segmenter.segment(image, **options) for image in PIXELS]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    if not PYTHON.exists():
        pytest.skip("needs Triton's client in an environment of its own; run 'make .venv-triton/installed'")
    folder = tmp_path_factory.mktemp("triton")
    repository = folder / "repository"
    for version in ("1", "2"):
        write_tiny_model(repository / "tiny" / version / "model.onnx")
    write_tiny_model(repository / "many" / "1" / "model.onnx", class_count=300)
    write_tiny_model(repository / "other" / "1" / "model.onnx")
    write_tiny_model(repository / "slow" / "1" / "model.onnx", work_rounds=5_000)
    np.save(folder / "pixels.npy", PIXELS)
    cv2.imwrite(str(folder / "image.png"), PIXELS[0, ..., ::-1])
    with running_server(ModelRegistry([repository], CPU_CONFIG)) as server:
        broken = repository / "broken" / "1" / "model.onnx"
        broken.parent.mkdir(parents=True)
        broken.write_bytes(b"no model")
        done = subprocess.run(
            [PYTHON, Path(__file__).with_name("tritonclient_script.py"), server.address, folder],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return Session(json.loads(done.stdout.splitlines()[-1]), folder)


def test_server_and_models_are_live_and_ready_and_an_unknown_model_is_not(session: Session) -> None:
    server = session.report["server"]
    assert server["live"]
    assert server["ready"]
    assert server["models"] == {"tiny": True, "many": True, "nobody": False}
    assert server["versions"] == {"1": True, "2": True, "3": False}


def test_server_names_itself_and_the_extensions_it_has(session: Session) -> None:
    metadata = session.report["server"]["metadata"]
    assert (metadata["name"], metadata["version"]) == ("fcnseg", fcnseg.__version__)
    assert {"model_configuration", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_metadata_names_tensors_versions_and_platform(session: Session) -> None:
    assert session.report["server"]["model"] == {
        "name": "tiny",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "-1", "-1", "3"]}],
        "outputs": [
            {"name": "class_map", "datatype": "UINT8", "shape": ["-1", "-1", "-1"]},
            {"name": "heatmap", "datatype": "FP32", "shape": ["-1", "3", "-1", "-1"]},
            {"name": "confidence", "datatype": "UINT8", "shape": ["-1", "-1", "-1"]},
        ],
    }
    assert session.report["server"]["model many"]["outputs"][0]["datatype"] == "UINT16"


def test_configuration_tells_batching_and_shapes_without_the_first_axis(session: Session) -> None:
    config = session.report["server"]["config"]
    assert config["maxBatchSize"] == CPU_CONFIG.batching.max_queue
    assert config["dynamicBatching"] == {"preferredBatchSize": [CPU_CONFIG.batching.max_batch]}
    assert config["input"] == [
        {"name": "image", "dataType": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": ["-1", "-1", "3"]}
    ]
    assert [output["dims"] for output in config["output"]] == [["-1", "-1"], ["3", "-1", "-1"], ["-1", "-1"]]


def test_repository_is_listed_and_a_model_can_be_unloaded_and_loaded(session: Session) -> None:
    before, unloaded, ready_unloaded, loaded, ready_loaded = session.report["repository"]
    names = [("broken", "1"), ("many", "1"), ("other", "1"), ("slow", "1"), ("tiny", "1"), ("tiny", "2")]
    for index, gone in ((before, {"broken"}), (unloaded, {"broken", "other"}), (loaded, {"broken"})):
        assert index == [
            {"name": name, "version": version, **(UNAVAILABLE if name in gone else READY)} for name, version in names
        ]
    assert (ready_unloaded, ready_loaded) == (False, True)


def test_answers_are_those_of_the_model_file(session: Session) -> None:
    expected = session.expect("tiny/2", confidence=True)
    for name in ("class_map", "heatmap", "confidence"):
        np.testing.assert_array_equal(session.result(name), np.stack([getattr(answer, name) for answer in expected]))
    assert session.report["infer"] == {
        "id": "seven",
        "model": ["tiny", "2"],
        "outputs": ["class_map", "heatmap", "confidence"],
        "only": ["class_map"],
    }


def test_more_than_256_classes_come_as_uint16(session: Session) -> None:
    result = session.result("many")
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, np.stack([answer.class_map for answer in session.expect("many/1")]))


def test_image_files_are_answered(session: Session) -> None:
    expected = session.expect("tiny/2")[0].class_map
    np.testing.assert_array_equal(session.result("files"), np.stack([expected, expected]))


def test_class_maps_come_as_png_where_that_is_asked_for(session: Session) -> None:
    files = session.result("png")
    assert files.shape == (2,)
    for file, expected in zip(files, session.expect("tiny/2"), strict=True):
        np.testing.assert_array_equal(masks.read_ids(file), expected.class_map)


def test_async_requests_are_answered(session: Session) -> None:
    assert sorted(session.report["async"]) == [[str(i), "None"] for i in range(5)]


def test_stream_is_answered_in_order_and_survives_a_request_that_fails(session: Session) -> None:
    expected = session.expect("tiny/2")[0].class_map.tobytes().hex()
    answers = session.report["stream"]
    assert "no model 'nobody'" in answers[7][1]
    assert [answer for i, answer in enumerate(answers) if i != 7] == [
        [str(i), expected, i == 9] for i in range(20) if i != 7
    ]


@pytest.mark.parametrize(
    ("attempt", "status", "words"),
    [
        ("model", "NOT_FOUND", "no model 'nobody'"),
        ("version", "NOT_FOUND", "no version '9'"),
        ("input", "INVALID_ARGUMENT", "no input 'picture'"),
        ("datatype", "INVALID_ARGUMENT", "'FP32'"),
        ("output", "INVALID_ARGUMENT", "no output 'mask'; there are class_map, heatmap, confidence"),
        ("classification", "INVALID_ARGUMENT", "classification"),
        ("late", "DEADLINE_EXCEEDED", ""),
        ("too late in the queue", "RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED", "deadline"),
        ("load", "NOT_FOUND", "no model 'nobody'"),
        ("load broken", "FAILED_PRECONDITION", "version 1 is not an ONNX file"),
        ("load with a configuration", "INVALID_ARGUMENT", "no configuration"),
        ("unload", "NOT_FOUND", "no model 'nobody'"),
        ("metadata", "NOT_FOUND", "no model 'nobody'"),
        ("statistics", "NOT_FOUND", "no model 'nobody'"),
        ("shared memory", "UNIMPLEMENTED", ""),
    ],
)
def test_errors_have_their_status_and_say_what_is_wrong(
    session: Session, attempt: str, status: str, words: str
) -> None:
    found, message = session.report["errors"][attempt]
    assert re.fullmatch(status, found.removeprefix("StatusCode."))
    assert words in message
    assert "\n" not in message


def test_statistics_count_images_and_runs(session: Session) -> None:
    (statistics,) = session.report["statistics"]["modelStats"]
    images = 2 + 2 + 2 + 5 + 19
    assert (statistics["name"], statistics["version"]) == ("tiny", "2")
    assert int(statistics["inferenceCount"]) == images
    assert 0 < int(statistics["executionCount"]) <= images
    done = statistics["inferenceStats"]
    for stage in ("success", "queue", "computeInput", "computeInfer", "computeOutput"):
        assert int(done[stage]["count"]) == images
        assert int(done[stage]["ns"]) > 0
    assert sum(int(run["batchSize"]) * int(run["computeInfer"]["count"]) for run in statistics["batchStats"]) == images


def test_messages_are_those_of_tritons_client(session: Session) -> None:
    """Every method, message, field and enum value of ours is in the published files, with its number and type."""
    theirs: set[str] = set()
    for file in session.report["files"]:
        theirs |= set(describe_file(FileDescriptorProto.FromString(base64.b64decode(file))))
    ours = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert set(describe_file(ours)) <= theirs
