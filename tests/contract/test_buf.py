"""buf, as anyone runs it: style, compatibility, and calls through the server's own description of itself."""

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_server import RunningServer, running_server

ROOT = Path(__file__).parent.parent.parent
BUF = Path(sysconfig.get_path("scripts")) / "buf"
PUBLISHED = {name: Path(__file__).parent / f"{name}_v1.binpb" for name in ("segmentation", "model_admin")}


def run_buf(*arguments: str | Path) -> str:
    done = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_contracts_are_in_buf_style() -> None:
    run_buf("lint")


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_clients_of_the_contract_as_first_published_are_understood(published: Path) -> None:
    run_buf("breaking", "--against", published)


@pytest.mark.parametrize(
    ("name", "line"),
    [("segmentation", "bytes encoded = 3;"), ("model_admin", "string model_version = 2;")],
)
def test_buf_tells_a_contract_that_breaks(tmp_path: Path, name: str, line: str) -> None:
    """The check above would see a number that changed."""
    shutil.copytree(ROOT / "proto/fcnseg", tmp_path / "proto/fcnseg")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    changed = tmp_path / f"proto/fcnseg/v1/{name}.proto"
    proto = changed.read_text()
    assert line in proto
    changed.write_text(proto.replace(line, line.replace("= ", "= 9")))
    done = subprocess.run(
        [BUF, "breaking", "--against", PUBLISHED[name]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 100
    assert f'"{line.split()[1]}"' in done.stdout


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with running_server(tiny_model) as running:
        yield running


def call(server: RunningServer, method: str, request: object) -> object:
    """Call a method of which nothing is known but what the server tells by reflection."""
    address = f"http://{server.address}/{method}"
    return json.loads(
        run_buf("curl", "--http2-prior-knowledge", "--protocol", "grpc", "-d", json.dumps(request), address)
    )


def test_buf_curl_lists_the_models(server: RunningServer) -> None:
    answer = call(server, "fcnseg.v1.SegmentationService/ListModels", {})
    assert [model["name"] for model in answer["models"]] == ["tiny"]


def test_buf_curl_reloads_a_model(server: RunningServer) -> None:
    answer = call(server, "fcnseg.v1.ModelAdminService/ReloadModel", {"modelName": "tiny"})
    assert [(model["name"], model["version"]) for model in answer["models"]] == [("tiny", "1")]


def test_buf_curl_asks_the_inference_service(server: RunningServer) -> None:
    assert call(server, "inference.GRPCInferenceService/ServerMetadata", {})["name"] == "fcnseg"
    assert call(server, "inference.GRPCInferenceService/ModelReady", {"name": "tiny"}) == {"ready": True}
