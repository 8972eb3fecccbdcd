"""Server processes behind a balancer that are replaced, and clients that ask all the while."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from fcnseg.client import Client
from tests.scraping import scrape
from tests.server_process import ServerProcess, free_port
from tests.waiting import wait_until

DRAIN_S = 3.0
"""Longer than the tests' balancers take to see that a server drains."""
LOADS = pytest.mark.parametrize(
    ("clients", "rounds"), [(4, 1), pytest.param(16, 5, marks=pytest.mark.slow)], ids=["once", "again and again"]
)
COLOURS = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}


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
        """Stop the process, which has answered requests, gracefully, and start another."""
        assert self.server is not None
        assert self.requests() > 0
        self.server.begin_stop()
        assert self.server.wait_stopped() == 0
        self.server.kill()
        self.start()

    def wait_until_asked(self) -> None:
        """Return when the process has answered requests; balancers and clients try again what has failed them late."""
        wait_until(lambda: self.requests() > 0)

    def requests(self) -> float:
        return scrape(f"127.0.0.1:{self.http_port}").value(
            "fcnseg_requests_total", method="fcnseg.v1.SegmentationService/Segment", code="OK"
        )


class Load:
    """Clients that ask, and check the answers, until they are told to stop.

    Args:
        server: Whom.
        clients: How many ask.
        retries: How often they ask anew, beyond what gRPC does by itself.

    Attributes:
        answered: Images that were answered rightly.
        failures: What went wrong.
    """

    def __init__(self, server: str, clients: int, retries: int = 0) -> None:
        self._server = server
        self._retries = retries
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
        with Client(self._server, retries=self._retries, timeout_s=60) as client:
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
def two_places(model: Path) -> Iterator[list[Place]]:
    """Run two servers of a model."""
    places = [Place(model), Place(model)]
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Place.start, places))
        yield places
    finally:
        for place in places:
            if place.server is not None:
                place.server.kill()


def replace_every_server(
    address: str,
    places: list[Place],
    clients: int,
    rounds: int,
    replace: Callable[[Place], None] = Place.replace,
    retries: int = 0,
) -> None:
    """Replace every server behind a balancer some times, while clients ask; no request may fail.

    Args:
        address: The balancer's.
        places: The servers'.
        clients: How many ask.
        rounds: How often each is replaced.
        replace: Replaces the server of a place.
        retries: How often a client asks anew, beyond what gRPC does by itself.
    """
    began = time.monotonic()
    with Load(address, clients, retries) as load:
        for place in places:
            place.wait_until_asked()
        for _ in range(rounds):
            for place in places:
                replace(place)
                place.wait_until_asked()
    seconds = time.monotonic() - began
    print(f"{load.answered} images answered, {len(load.failures)} requests failed, in {seconds:.0f} s")  # noqa: T201
    assert load.failures == []
    assert load.answered >= 2 * (1 + rounds)  # each process answered
