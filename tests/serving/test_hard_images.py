"""Image files as strangers send them: odd, hostile and broken ones, through the real server."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fcnseg.client import Client
from fcnseg.errors import InvalidRequestError
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.process_memory import peak
from tests.server_process import ServerProcess, free_port, server_process

LONGEST_S = 10.0
MOST_MEMORY = 1 << 30


@pytest.fixture(scope="module")
def files(shared_data: Path) -> list[Path]:
    found = sorted(path for path in (shared_data / "hard_images").iterdir() if path.is_file())
    assert len(found) > 40
    return found


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with server_process(tiny_model, free_port()) as server:
        yield server
        if sys.platform == "linux":
            assert peak(server.pid) < MOST_MEMORY


def test_every_file_gets_a_mask_or_one_line_that_helps(server: ServerProcess, files: list[Path]) -> None:
    answered: list[Path] = []
    refused: dict[Path, InvalidRequestError] = {}
    with Client(server.address, retries=0, timeout_s=LONGEST_S) as client:
        for path in files:
            try:
                height, width = client.segment(path).class_map.shape
                assert min(height, width) > 0
                answered.append(path)
            except InvalidRequestError as error:
                refused[path] = error
    assert len(answered) > len(refused) > 0
    for path, error in refused.items():
        prefix = f"image {path}: server {server.address}: "
        assert error.field == "encoded", path
        assert str(error).startswith(prefix)
        require_help(str(error).removeprefix(prefix))


def test_a_stream_and_the_inference_protocol_answer_them_alike(server: ServerProcess, files: list[Path]) -> None:
    with Client(server.address, timeout_s=LONGEST_S) as client, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        for path, item in zip(files, client.segment_stream(files), strict=True):
            began = time.monotonic()
            request = oip.ModelInferRequest(model_name="tiny")
            tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(path.read_bytes())
            request.outputs.add(name="class_map")
            try:
                response = stub.ModelInfer(request)
            except grpc.RpcError as error:
                require_refused(error, path)
                assert isinstance(item.error, InvalidRequestError), path
            else:
                assert item.segmentation is not None, path
                assert response.raw_output_contents[0] == item.segmentation.class_map.tobytes(), path
            assert time.monotonic() - began < LONGEST_S, path


def require_refused(error: grpc.RpcError, path: Path) -> None:
    """Check that a call was ended for the sake of its image."""
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, path
    require_help(error.details())


def require_help(message: str) -> None:
    """Check that a message says what to do, in a line."""
    assert 20 < len(message) < 300, message
    assert "\n" not in message, message
    assert message.endswith(("store or send it again", "use JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF")), message
