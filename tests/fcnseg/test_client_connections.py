"""How a client's connections are made, kept and left."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from fcnseg import exchange
from fcnseg.async_client import AsyncClient
from fcnseg.client import Client
from fcnseg.errors import ServerUnavailableError, UsageError
from fcnseg.exchange import PING_AFTER_MS
from fcnseg.v1 import segmentation_pb2 as pb
from serving import connections
from serving.server import ServerConfig
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.name_server import name_server
from tests.other_server import ONE_PIXEL, server_that_answers
from tests.relay import relay_to
from tests.running_server import running_server
from tests.server_process import free_port
from tests.waiting import wait_until

IMAGE = np.full((4, 6, 3), (0, 0, 255), np.uint8)
BLUE = [[2] * 6] * 4


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients ping soon, and wait for two seconds."""
    monkeypatch.setattr(exchange, "PING_AFTER_MS", 500)
    monkeypatch.setattr(exchange, "PING_TIMEOUT_MS", 2000)


@pytest.mark.usefixtures("soon")
def test_a_connection_that_falls_silent_is_left_and_the_request_sent_over_another(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as server,
        relay_to(server.address) as relay,
        Client(relay.address, timeout_s=60) as client,
    ):
        client.segment(IMAGE)
        relay.fall_silent()
        assert client.segment(IMAGE).class_map.tolist() == BLUE


@pytest.mark.usefixtures("soon")
async def test_the_async_client_leaves_it_too(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, relay_to(server.address) as relay:
        async with AsyncClient(relay.address, timeout_s=60) as client:
            await client.segment(IMAGE)
            relay.fall_silent()
            assert (await client.segment(IMAGE)).class_map.tolist() == BLUE


@pytest.mark.usefixtures("soon")
def test_a_stream_whose_connection_falls_silent_is_told(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as server,
        relay_to(server.address) as relay,
        Client(relay.address, timeout_s=60) as client,
    ):
        stream = client.segment_stream([IMAGE] * 100, in_flight=2)
        next(stream)
        relay.fall_silent()
        with pytest.raises(ServerUnavailableError):
            list(stream)


@pytest.mark.usefixtures("soon")
def test_servers_of_ours_take_the_pings_of_a_request_that_waits(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connections.SHORTEST_PING_INTERVAL_MS < PING_AFTER_MS
    monkeypatch.setattr(exchange, "PING_TIMEOUT_MS", 60_000)
    monkeypatch.setattr(connections, "SHORTEST_PING_INTERVAL_MS", 100)
    segmenter = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(segmenter, tiny_model)) as server,
        relay_to(server.address) as relay,
        Client(relay.address, retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(client.segment, IMAGE)
        wait_until(lambda: relay.pings > 5 or waiting.done())
        segmenter.gate.set()
        assert waiting.result().class_map.tolist() == BLUE


def test_a_server_that_has_moved_to_another_address_is_found_within_the_retries(tiny_model: Path) -> None:
    port = free_port()
    with (
        name_server("127.0.0.2") as names,
        Client(f"dns://{names.address}/server.test:{port}", retries=4, timeout_s=60) as client,
    ):
        with running_server(tiny_model, ServerConfig(host="127.0.0.2", port=port)):
            client.segment(IMAGE)
        names.told = "127.0.0.3"
        with running_server(tiny_model, ServerConfig(host="127.0.0.3", port=port)):
            assert client.segment(IMAGE).class_map.tolist() == BLUE


class Peers:
    """Answers, and counts the requests of each connection."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, _: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        self.asked[context.peer()] += 1
        return pb.SegmentResponse(class_map=ONE_PIXEL)


@pytest.mark.parametrize("count", [1, 3])
def test_requests_are_shared_out_to_as_many_connections_as_are_asked_for(count: int) -> None:
    peers = Peers()
    with server_that_answers(peers) as address, Client(address, connections=count) as client:
        for _ in range(6):
            client.segment(IMAGE)
    assert list(peers.asked.values()) == [6 // count] * count


async def test_the_async_client_shares_them_out_too() -> None:
    peers = Peers()
    with server_that_answers(peers) as address:
        async with AsyncClient(address, connections=3) as client:
            for _ in range(6):
                await client.segment(IMAGE)
    assert list(peers.asked.values()) == [2, 2, 2]


def test_a_client_without_a_connection_is_refused() -> None:
    with pytest.raises(UsageError, match="connections are 0; there must be at least 1"):
        Client("127.0.0.1:1", connections=0)


@pytest.mark.parametrize("variable", ["grpc_proxy", "http_proxy", "https_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1"])
def test_no_proxy_is_asked_for_a_server_on_this_machine(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, host: str, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with running_server(tiny_model) as server:
        port = server.address.rpartition(":")[2]
        with Client(f"{host}:{port}", retries=0) as client:
            assert client.segment(IMAGE).class_map.tolist() == BLUE


def test_other_servers_are_reached_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("http_proxy", f"http://{proxy}")
    with (
        Client("server.example.org:50051", retries=0) as client,
        pytest.raises(ServerUnavailableError, match=proxy),
    ):
        client.segment(IMAGE)
