import asyncio
import copy
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

import fcnseg
from fcnseg.async_client import AsyncClient
from fcnseg.client import Client
from fcnseg.errors import (
    ImageError,
    InvalidRequestError,
    RemoteModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
    UsageError,
)
from fcnseg.masks import Encoding
from fcnseg.v1 import segmentation_pb2 as pb
from serving.batcher import BatchingConfig
from serving.server import ServerConfig
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.other_server import Wide, server_that_answers
from tests.running_server import CPU_CONFIG, running_server
from tests.server_process import free_port, server_process
from tests.waiting import wait_until

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def frames(count: int) -> list[NDArray[np.uint8]]:
    """Images of one colour each, in the order red, green, blue, red ..."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    return [np.full((4, 8, 3), colours[i % 3], np.uint8) for i in range(count)]


async def require_no_tasks() -> None:
    """Return when there are no tasks beside the test's own."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(wait_until, lambda: len(asyncio.all_tasks(loop)) == 1, tell=lambda: asyncio.all_tasks(loop))


async def test_the_answers_are_those_of_the_other_client(tiny_model: Path) -> None:
    asked = {"heatmaps": ["red"], "confidence": True, "overlay": True, "classes": ["blue", "0"]}
    with running_server(tiny_model) as server, Client(server.address) as client:
        expected = {encoding: client.segment(IMAGE, encoding=encoding, **asked) for encoding in Encoding}
        async with AsyncClient(server.address) as aio:
            await aio.wait_until_ready(60)
            assert await aio.list_models() == client.list_models() == (await aio.get_model(),)
            answers = {encoding: await aio.segment(IMAGE, encoding=encoding, **asked) for encoding in Encoding}
    for encoding, answer in answers.items():
        assert (answer.data, answer.runs) == (expected[encoding].data, expected[encoding].runs)
        assert (answer.overlay, answer.other_id) == (expected[encoding].overlay, 255)
        np.testing.assert_array_equal(answer.class_map, expected[encoding].class_map)
        np.testing.assert_array_equal(answer.confidence, expected[encoding].confidence)


async def test_requests_run_side_by_side(tiny_model: Path) -> None:
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (10 + i, 20, 3), dtype=np.uint8) for i in range(30)]
    offline = fcnseg.load(tiny_model, "cpu", threads=1)
    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            answers = await asyncio.gather(*map(client.segment, photos))
    for image, answer in zip(photos, answers, strict=True):
        np.testing.assert_array_equal(answer.class_map, offline.segment(image).class_map)


async def test_errors_are_typed(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rubbish.jpg"
    path.write_bytes(b"rubbish")
    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(InvalidRequestError, match=f"image {path}: server {server.address}") as invalid:
                await client.segment(path)
            with pytest.raises(RemoteModelNotFoundError, match="which serves tiny"):
                await client.get_model("dog")
            with pytest.raises(ImageError, match=r"gone\.jpg cannot be read"):
                await client.segment(tmp_path / "gone.jpg")
    assert invalid.value.field == "encoded"
    async with AsyncClient("127.0.0.1:1", retries=0) as client:
        with pytest.raises(ServerUnavailableError, match=r"no server answers at 127\.0\.0\.1:1"):
            await client.segment(IMAGE)
        with pytest.raises(RequestTimeoutError, match=r"within 0\.3 s"):
            await client.wait_until_ready(0.3)
    with pytest.raises(UsageError, match="HOST:PORT"):
        AsyncClient("nowhere")


async def test_overload_is_told_and_a_cancelled_task_gives_its_place_back(tiny_model: Path) -> None:
    gated = GatedSegmenter(tiny_model)
    config = replace(CPU_CONFIG, batching=BatchingConfig(max_batch=1, max_queue=2))
    try:
        registry = registry_of(gated, tiny_model, config)
        admission = registry.models[0].admission
        with running_server(registry) as server:
            async with AsyncClient(server.address, retries=0) as client:
                running = asyncio.create_task(client.segment(IMAGE))
                assert await asyncio.to_thread(gated.begun.acquire, timeout=60)
                waiting = asyncio.create_task(client.segment(IMAGE))
                await asyncio.to_thread(wait_until, lambda: admission.pending == 2)
                with pytest.raises(ServerOverloadedError) as caught:
                    await client.segment(IMAGE)
                waiting.cancel()
                await asyncio.to_thread(wait_until, lambda: admission.pending == 1)
                another = asyncio.create_task(client.segment(IMAGE))
                await asyncio.to_thread(wait_until, lambda: admission.pending == 2)
                gated.gate.set()
                assert (await running).class_map.shape == (await another).class_map.shape == (40, 60)
    finally:
        gated.gate.set()
    assert waiting.cancelled()
    assert caught.value.retry_after_s is not None


async def test_two_hundred_frames_come_back_in_order_two_at_a_time(tiny_model: Path) -> None:
    sent = 0

    async def video() -> AsyncIterator[NDArray[np.uint8]]:
        nonlocal sent
        for frame in frames(200):
            sent += 1
            yield frame

    answered = 0
    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            async for item in client.segment_stream(video(), in_flight=2, encoding=Encoding.RAW):
                assert item.id == answered
                assert np.unique(item.result().class_map).tolist() == [answered % 3]
                answered += 1
                assert sent <= answered + 2
            await require_no_tasks()
    assert answered == 200


async def test_what_cannot_be_read_is_told_in_its_place_and_the_rest_is_answered(
    tiny_model: Path, tmp_path: Path
) -> None:
    images = [IMAGE, b"rubbish", ("lost", tmp_path / "gone.jpg"), (17, np.zeros((2, 2), np.uint8)), IMAGE]
    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            items = [item async for item in client.segment_stream(images, in_flight=1)]
    assert [item.id for item in items] == [0, 1, "lost", 17, 4]
    kinds = [type(item.error) for item in items]
    assert kinds == [type(None), InvalidRequestError, ImageError, ImageError, type(None)]


async def test_leaving_an_endless_stream_ends_it(tiny_model: Path) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield IMAGE

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            async with aclosing(client.segment_stream(endless(), in_flight=3)) as items:
                async for item in items:
                    if item.id == 5:
                        break
            await require_no_tasks()
            assert taken <= 5 + 1 + 3
            async for _ in client.segment_stream(endless(), in_flight=3):
                break
            gc.collect()
            await require_no_tasks()
            assert (await client.segment(IMAGE)).class_map.shape == (40, 60)


async def test_a_cancelled_task_ends_its_stream(tiny_model: Path) -> None:
    begun = asyncio.Event()

    async def follow(client: AsyncClient) -> None:
        async for _ in client.segment_stream(itertools.repeat(IMAGE)):
            begun.set()

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            task = asyncio.create_task(follow(client))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await require_no_tasks()


async def test_what_the_images_raise_comes_after_the_answers_to_those_before(tiny_model: Path) -> None:
    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        for frame in frames(3):
            yield frame
        raise OSError("the camera is gone")

    seen = []
    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            with pytest.raises(OSError, match="the camera is gone"):  # noqa: PT012 - it ends the loop
                async for item in client.segment_stream(camera()):
                    seen.append(item.id)  # noqa: PERF401 - the loop raises
            await require_no_tasks()
    assert seen == [0, 1, 2]


async def test_images_that_wait_for_what_is_cancelled_end_the_stream(tiny_model: Path) -> None:
    picture: asyncio.Future[NDArray[np.uint8]] = asyncio.get_running_loop().create_future()

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        yield IMAGE
        yield await picture

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            items = client.segment_stream(camera())
            assert (await anext(items)).id == 0
            picture.cancel()
            with pytest.raises(asyncio.CancelledError):
                await anext(items)
            await require_no_tasks()


async def test_a_slow_source_in_a_thread_does_not_stop_the_event_loop(tiny_model: Path) -> None:
    more = threading.Event()

    def live() -> Iterator[NDArray[np.uint8]]:
        yield IMAGE
        more.wait(20)
        yield IMAGE

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            items = client.segment_stream(live())
            assert (await anext(items)).id == 0
            assert (await client.segment(IMAGE)).class_map.shape == (40, 60)
            more.set()
            assert [item.id async for item in items] == [1]


async def test_a_source_that_blocks_takes_no_thread_from_other_requests(tiny_model: Path) -> None:
    more = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    def live() -> Iterator[NDArray[np.uint8]]:
        more.wait(20)
        yield IMAGE

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            first = asyncio.create_task(anext(client.segment_stream(live())))
            async with asyncio.timeout(10):
                assert (await client.segment(IMAGE)).class_map.shape == (40, 60)
            assert not first.done()
            more.set()
            assert (await first).id == 0


async def test_the_thread_that_reads_images_ends_with_the_stream(tiny_model: Path) -> None:
    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("fcnseg-images")]

    gc.disable()
    try:
        with running_server(tiny_model) as server:
            async with AsyncClient(server.address) as client:
                async with aclosing(client.segment_stream(itertools.repeat(IMAGE), in_flight=1)) as items:
                    assert (await anext(items)).id == 0
                    await asyncio.sleep(0.3)  # it waits until more may be under way
                    assert readers()
                await asyncio.to_thread(wait_until, lambda: not readers(), tell=readers)
    finally:
        gc.enable()


async def test_answers_are_received_while_their_reader_is_busy() -> None:
    """The server would leave a client that does not read for a minute."""
    wide = Wide()
    with server_that_answers(stream=wide) as address:
        async with AsyncClient(address) as client, aclosing(client.segment_stream([IMAGE] * 8, in_flight=8)) as items:
            assert (await anext(items)).id == 0
            assert await asyncio.to_thread(wide.all_sent.wait, 60)
            assert [item.id async for item in items] == [1, 2, 3, 4, 5, 6, 7]
    await require_no_tasks()


async def test_a_server_that_falls_silent_is_left_after_the_timeout() -> None:
    silence = threading.Event()

    def answer(_: object, context: object) -> Iterator[pb.SegmentStreamResponse]:
        context.add_callback(silence.set)  # type: ignore[attr-defined]
        silence.wait(60)
        return iter(())

    with server_that_answers(stream=answer) as address:
        async with AsyncClient(address, timeout_s=2) as client:
            with pytest.raises(RequestTimeoutError, match="within 2 s"):
                await anext(client.segment_stream(itertools.repeat(IMAGE)))
            assert await asyncio.to_thread(silence.wait, 20)


async def test_an_idle_stream_is_told_that_the_server_has_gone(tiny_model: Path) -> None:
    async def waiting() -> AsyncIterator[NDArray[np.uint8]]:
        yield IMAGE
        await asyncio.sleep(20)

    with running_server(tiny_model) as server:
        async with AsyncClient(server.address) as client:
            items = client.segment_stream(waiting())
            await anext(items)
            server.begin_stop()
            with pytest.raises(ServerUnavailableError):
                await anext(items)


async def test_a_killed_server_is_told_and_a_new_one_found(tiny_model: Path) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", retries=0) as client:
        with server_process(tiny_model, port) as server:
            items = client.segment_stream(itertools.repeat(IMAGE), in_flight=2)
            for _ in range(3):
                (await anext(items)).result()
            server.kill()
            with pytest.raises(ServerUnavailableError):
                [item async for item in items]
            with pytest.raises(ServerUnavailableError):
                await client.segment(IMAGE)
        with server_process(tiny_model, port):
            await client.wait_until_ready(60)
            assert (await client.segment(IMAGE)).class_map.shape == (40, 60)
    await require_no_tasks()


async def test_retries_ride_through_a_restart(tiny_model: Path) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", retries=4, timeout_s=60) as client:
        with server_process(tiny_model, port) as server:
            await client.segment(IMAGE)
            server.kill()
        requests = [asyncio.create_task(client.segment(IMAGE)) for _ in range(5)]
        await asyncio.sleep(0.1)
        # In this process, where it is there at once: the retries end after 8 s.
        with running_server(tiny_model, ServerConfig(port=port)):
            answers = await asyncio.gather(*requests)
    assert [answer.class_map.shape for answer in answers] == [(40, 60)] * 5


async def test_one_image_is_no_stream() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UsageError, match="give a list"):
            client.segment_stream("photo.jpg")
        with pytest.raises(UsageError, match="in_flight is 0"):
            client.segment_stream([], in_flight=0)


async def test_a_number_is_no_version() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        for call in (client.get_model, client.unload_model):
            with pytest.raises(UsageError, match="version is 2; give it as text"):
                await call("cat", cast("str", 2))
        for load in (client.load_model, client.reload_model):
            with pytest.raises(UsageError, match="model is 2; give it as text"):
                await load(cast("str", 2))


async def test_closing_the_client_ends_what_is_under_way_and_it_takes_nothing_more(tiny_model: Path) -> None:
    gated = GatedSegmenter(tiny_model)
    try:
        with running_server(registry_of(gated, tiny_model)) as server:
            client = AsyncClient(server.address)
            stream = client.segment_stream(itertools.repeat(IMAGE), in_flight=2)
            tasks = [asyncio.create_task(client.segment(IMAGE)), asyncio.ensure_future(anext(stream))]
            assert await asyncio.to_thread(gated.begun.acquire, timeout=60)
            await client.close()
            for task in tasks:
                with pytest.raises(RequestError, match="the client was closed") as caught:
                    await task
                assert caught.value.code == "CANCELLED"
            with pytest.raises(UsageError, match="has been closed; make another"):
                await client.list_models()
            with pytest.raises(UsageError, match="has been closed; make another"):
                client.segment_stream([IMAGE])
            gated.gate.set()
    finally:
        gated.gate.set()
    await require_no_tasks()


def test_a_client_is_made_and_used_in_one_event_loop(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="is made where an event loop runs"):
        AsyncClient("127.0.0.1:1")

    async def begin(address: str) -> AsyncClient:
        client = AsyncClient(address)
        await client.segment(IMAGE)
        return client

    async def go_on(client: AsyncClient) -> None:
        for call in (client.segment(IMAGE), client.list_models(), anext(client.segment_stream([IMAGE]))):
            with pytest.raises(UsageError, match=r"was made in another event loop; make one in each"):
                await call

    with running_server(tiny_model) as server:
        asyncio.run(go_on(asyncio.run(begin(server.address))))


async def test_a_client_is_told_by_its_address_and_cannot_be_copied() -> None:
    async with AsyncClient("127.0.0.1:1", token="secret") as client:  # noqa: S106
        assert repr(client) == "AsyncClient('127.0.0.1:1')"
        with pytest.raises(UsageError, match="make another there"):
            copy.deepcopy(client)
