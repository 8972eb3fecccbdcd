"""HAProxy, by the configuration in deploy/, over two server processes that are replaced under load."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcnseg.client import Client
from tests.balancing import LOADS, Place, replace_every_server, two_places
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY
from tests.server_process import free_port

CONFIGURATION = DEPLOY / "haproxy" / "haproxy.cfg"

pytestmark = needs("haproxy", "haproxy")


@contextmanager
def balanced(model: Path, folder: Path) -> Iterator[tuple[str, list[Place]]]:
    """Run HAProxy over two servers; yield its address and theirs."""
    configuration, port = folder / "haproxy.cfg", free_port()
    with two_places(model) as places:
        configuration.write_text(configured(port, places))
        with running(["haproxy", "-db", "-f", str(configuration)], folder / "haproxy.log"):
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(60)
            yield f"127.0.0.1:{port}", places


def configured(port: int, places: list[Place]) -> str:
    """Return the configuration in deploy/ with other addresses, and checks that are as often as a test is short.

    A check must be answered within that time.
    """
    text = CONFIGURATION.read_text()
    changes = [(r"^    bind :50051 ", f"    bind 127.0.0.1:{port} "), (r" inter 2s ", " inter 500ms ")]
    for name, place in zip(("first", "second"), places, strict=True):
        server = f"    server {name} 127.0.0.1:{place.port} port {place.http_port}"
        changes.append((rf"^    server {name} \S+:50051$", server))
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, pattern
    return text


def test_haproxy_takes_the_configuration_without_a_warning() -> None:
    assert "warning" not in output_of(["haproxy", "-c", "-f", str(CONFIGURATION)]).lower()


def test_a_server_drains_for_longer_than_haproxy_takes_to_see_it() -> None:
    text = CONFIGURATION.read_text()
    (drain,) = re.findall(r"--drain-delay (\d+)", text)
    ((inter, fall),) = re.findall(r"inter (\d+)s fall (\d+)", text)
    assert int(drain) > int(inter) * int(fall)


@LOADS
def test_no_request_fails_while_every_server_is_replaced(
    tiny_model: Path, tmp_path: Path, clients: int, rounds: int
) -> None:
    with balanced(tiny_model, tmp_path) as (address, places):
        replace_every_server(address, places, clients, rounds)
