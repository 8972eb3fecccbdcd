"""Clients of several servers alike."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fcnseg.async_client import AsyncClient
from fcnseg.client import Client
from fcnseg.errors import ServerUnavailableError
from fcnseg.v1 import segmentation_pb2 as pb
from tests.other_server import ONE_PIXEL, server_that_answers
from tests.running_server import running_server
from tests.server_process import free_port, server_process

IMAGE = np.full((4, 6, 3), (0, 0, 255), np.uint8)
BLUE = [[2] * 6] * 4


def together(*addresses: str) -> str:
    return f"ipv4:{','.join(addresses)}"


def test_requests_go_to_all_servers_in_turn() -> None:
    taken: Counter[str] = Counter()

    def answering(name: str):  # noqa: ANN202 - a servicer's method
        def answer(*_: object) -> pb.SegmentResponse:
            taken[name] += 1
            return pb.SegmentResponse(class_map=ONE_PIXEL)

        return answer

    with (
        server_that_answers(answering("first")) as first,
        server_that_answers(answering("second")) as second,
        Client(together(first, second)) as client,
    ):
        for _ in range(40):
            client.segment(IMAGE)
    assert sum(taken.values()) == 40
    assert min(taken["first"], taken["second"]) > 10


def test_a_server_that_is_not_there_takes_nothing(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as server,
        Client(together(f"127.0.0.1:{free_port()}", server.address), retries=0) as client,
    ):
        assert all(client.segment(IMAGE).class_map.tolist() == BLUE for _ in range(20))


def test_no_request_fails_when_one_of_two_servers_is_killed(tiny_model: Path) -> None:
    with (
        running_server(tiny_model) as staying,
        server_process(tiny_model, free_port()) as killed,
        Client(together(staying.address, killed.address)) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        answers = [threads.submit(client.segment, IMAGE) for _ in range(400)]
        answers[100].result(60)
        killed.kill()
        assert all(answer.result(60).class_map.tolist() == BLUE for answer in answers)
        assert all(item.segmentation is not None for item in client.segment_stream([IMAGE] * 5))


async def test_no_request_fails_when_one_of_two_servers_stops(tiny_model: Path) -> None:
    """gRPC cancels requests that reach a server when it has begun to stop."""
    with running_server(tiny_model) as staying, running_server(tiny_model) as leaving:
        async with AsyncClient(together(staying.address, leaving.address)) as client:
            await asyncio.gather(*(client.segment(IMAGE) for _ in range(8)))
            asked = [asyncio.ensure_future(client.segment(IMAGE)) for _ in range(100)]
            await asked[10]
            leaving.begin_stop()
            answers = await asyncio.gather(*asked)
    assert all(answer.class_map.tolist() == BLUE for answer in answers)


@pytest.mark.slow
async def test_the_async_client_does_alike(tiny_model: Path) -> None:
    with running_server(tiny_model) as staying, server_process(tiny_model, free_port()) as killed:
        async with AsyncClient(together(staying.address, killed.address)) as client:
            asked = [asyncio.ensure_future(client.segment(IMAGE)) for _ in range(200)]
            await asked[50]
            killed.kill()
            answers = await asyncio.gather(*asked)
    assert all(answer.class_map.tolist() == BLUE for answer in answers)


def test_where_none_of_them_is_there_the_error_names_them() -> None:
    servers = together(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with (
        Client(servers, retries=0) as client,
        pytest.raises(ServerUnavailableError, match="no server answers") as caught,
    ):
        client.segment(IMAGE)
    assert servers in str(caught.value)
