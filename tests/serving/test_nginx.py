"""nginx, by the configuration in deploy/, over two server processes that are replaced under load."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fcnseg.client import Client
from tests.balancing import LOADS, Place, replace_every_server, two_places
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY
from tests.server_process import free_port
from tests.waiting import wait_until

CONFIGURATION = DEPLOY / "nginx" / "nginx.conf"

pytestmark = needs("nginx", "nginx")


@dataclass(frozen=True)
class Nginx:
    """nginx that answers at `address`, with its files in a folder."""

    address: str
    folder: Path
    configuration: str
    process: "subprocess.Popen[bytes]"

    def take_out(self, place: Place) -> None:
        """Send a server no more requests."""
        at = f"127.0.0.1:{place.port} "
        assert self.configuration.count(at) == 1
        self._reload(self.configuration.replace(at, f"{at}down "))

    def take_back(self) -> None:
        """Send requests to every server."""
        self._reload(self.configuration)

    def _reload(self, configuration: str) -> None:
        workers = self._workers()
        (self.folder / "nginx.conf").write_text(configuration)
        os.kill(self.process.pid, signal.SIGHUP)
        # Those there were before answer what they have, and end.
        wait_until(lambda: workers.isdisjoint(self._workers()) and self._workers() != set())

    def _workers(self) -> set[str]:
        number = self.process.pid
        return set(Path(f"/proc/{number}/task/{number}/children").read_text().split())


def configured(port: int, places: list[Place]) -> str:
    """Return the configuration in deploy/ with other addresses, and connections of a second."""
    text = CONFIGURATION.read_text()
    changes = [(r"listen 50051 http2", f"listen 127.0.0.1:{port} http2"), (r"keepalive_time 1m", "keepalive_time 1s")]
    for last, place in zip((1, 2), places, strict=True):
        changes.append((rf"10\.0\.0\.1{last}:50051 max_fails", f"127.0.0.1:{place.port} max_fails"))
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    return text


def command(folder: Path, configuration: Path) -> list[str]:
    files = f"daemon off; pid {folder}/pid; error_log {folder}/errors;"
    return ["nginx", "-p", str(folder), "-c", str(configuration), "-g", files]


@contextmanager
def balanced(model: Path, folder: Path) -> Iterator[tuple[Nginx, list[Place]]]:
    """Run nginx over two servers."""
    port = free_port()
    with two_places(model) as places:
        text = configured(port, places)
        (folder / "nginx.conf").write_text(text)
        with running(command(folder, folder / "nginx.conf"), folder / "nginx.log") as process:
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(60)
            yield Nginx(f"127.0.0.1:{port}", folder, text, process), places


def test_nginx_takes_the_configuration_without_a_warning(tmp_path: Path) -> None:
    told = output_of([*command(tmp_path, CONFIGURATION), "-t"])
    assert "test is successful" in told
    assert "[warn]" not in told


@LOADS
def test_no_request_fails_while_every_server_is_taken_out_and_replaced(
    tiny_model: Path, tmp_path: Path, clients: int, rounds: int
) -> None:
    with balanced(tiny_model, tmp_path) as (nginx, places):

        def replace(place: Place) -> None:
            nginx.take_out(place)
            place.replace()
            nginx.take_back()

        # Each worker ends the connections it has, and gRPC by itself sends what one did not take once more only.
        replace_every_server(nginx.address, places, clients, rounds, replace, retries=1)
