"""HAProxy, by the configuration in deploy/, over two server processes that are replaced under load."""

import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from fcnseg.client import Client
from tests.debian import needs, output_of, running
from tests.deploy_files import DEPLOY
from tests.scraping import scrape
from tests.server_process import ServerProcess, free_port
from tests.waiting import wait_until

CONFIGURATION = DEPLOY / "haproxy" / "haproxy.cfg"
DRAIN_S = 1.0
COLOURS = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}

pytestmark = needs("haproxy", "haproxy")


@dataclass
class Place:
    """An address at which one server process after the other answers."""

    model: Path
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    server: ServerProcess | None = None

    def start(self) -> None:
        options = ("--http-port", str(self.http_port), "--drain-delay", str(DRAIN_S), "--log-level", "warning")
        self.server = ServerProcess(self.model, self.port, *options)

    def replace(self) -> None:
        """Stop the process gracefully, start another, and return when it has answered requests."""
        assert self.server is not None
        assert self.requests() > 0
        self.server.begin_stop()
        assert self.server.wait_stopped() == 0
        self.server.kill()
        self.start()
        wait_until(lambda: self.requests() > 0)

    def requests(self) -> float:
        return scrape(f"127.0.0.1:{self.http_port}").value(
            "fcnseg_requests_total", method="fcnseg.v1.SegmentationService/Segment", code="OK"
        )


class Load:
    """Clients that ask, and check the answers, until they are told to stop.

    Attributes:
        answered: Images that were answered rightly.
        failures: What went wrong.
    """

    def __init__(self, server: str, clients: int) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(clients)
        self._lock = threading.Lock()
        self._clients = clients
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for seed in range(self._clients):
            self._threads.submit(self._ask, random.Random(seed))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads.shutdown()

    def _ask(self, chance: random.Random) -> None:
        with Client(self._server, retries=0, timeout_s=20) as client:
            while not self._stopping.is_set():
                wanted, size = chance.randrange(3), (chance.randint(1, 40), chance.randint(1, 40))
                image = np.full((*size, 3), COLOURS[wanted], np.uint8)
                try:
                    if chance.random() < 0.1:
                        answers = [item.segmentation for item in client.segment_stream([image] * 3)]
                    else:
                        answers = [client.segment(image)]
                    wrong = [a for a in answers if a is None or not np.array_equal(a.class_map, np.full(size, wanted))]
                    failure = f"{len(wrong)} wrong answers" if wrong else ""
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
                    failure = repr(error)
                with self._lock:
                    self.answered += len(answers) if not failure else 0
                    self.failures += [failure] if failure else []


@contextmanager
def balanced(model: Path, folder: Path) -> Iterator[tuple[str, list[Place]]]:
    """Run HAProxy over two servers; yield its address and theirs."""
    places, port = [Place(model), Place(model)], free_port()
    configuration = folder / "haproxy.cfg"
    configuration.write_text(configured(port, places))
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Place.start, places))
        with running(["haproxy", "-db", "-f", str(configuration)], folder / "haproxy.log"):
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(20)
            yield f"127.0.0.1:{port}", places
    finally:
        for place in places:
            if place.server is not None:
                place.server.kill()


def configured(port: int, places: list[Place]) -> str:
    """Return the configuration in deploy/ with other addresses, and checks that are as often as a test is short."""
    text = CONFIGURATION.read_text()
    changes = [(r"^    bind :50051 ", f"    bind 127.0.0.1:{port} "), (r" inter 2s ", " inter 100ms ")]
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


@pytest.mark.parametrize(
    ("clients", "rounds"), [(4, 1), pytest.param(16, 5, marks=pytest.mark.slow)], ids=["once", "again and again"]
)
def test_no_request_fails_while_every_server_is_replaced(
    tiny_model: Path, tmp_path: Path, clients: int, rounds: int
) -> None:
    began = time.monotonic()
    with balanced(tiny_model, tmp_path) as (address, places), Load(address, clients) as load:
        for place in places:
            wait_until(lambda place=place: place.requests() > 0)
        for _ in range(rounds):
            for place in places:
                place.replace()
    seconds = time.monotonic() - began
    print(f"{load.answered} images answered, {len(load.failures)} requests failed, in {seconds:.0f} s")  # noqa: T201
    assert load.failures == []
    assert load.answered > 100 * rounds
