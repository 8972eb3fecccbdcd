import gc
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry import trace

import fcnseg
from fcnseg.client import Client
from fcnseg.errors import (
    ImageError,
    ImageTooLargeError,
    InvalidRequestError,
    RemoteModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerUnavailableError,
    UsageError,
)
from fcnseg.images import ImageLimits
from fcnseg.masks import Encoding
from fcnseg.remote import StreamItem
from fcnseg.v1 import segmentation_pb2 as pb
from serving.server import ServerConfig
from tests.other_server import ONE_PIXEL, Wide, server_that_answers
from tests.running_server import running_server
from tests.waiting import wait_until

IMAGE = np.full((4, 6, 3), (0, 0, 255), np.uint8)


def frames(count: int) -> list[NDArray[np.uint8]]:
    """Images of one colour each, in the order red, green, blue, red ..., of several sizes."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    return [np.full((4 + 4 * (i % 2), 8, 3), colours[i % 3], np.uint8) for i in range(count)]


def threads_of_streams() -> list[str]:
    """Threads that a client's streams run in: its own, and gRPC's, which are called after their function."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name == "fcnseg-stream" or name.endswith("(_run)")]


def require_no_threads() -> None:
    wait_until(lambda: not threads_of_streams(), tell=threads_of_streams)


def test_two_hundred_frames_come_back_in_order_two_at_a_time(tiny_model: Path) -> None:
    sent = 0

    def video() -> Iterator[NDArray[np.uint8]]:
        nonlocal sent
        for frame in frames(200):
            sent += 1
            yield frame

    answered = 0
    with running_server(tiny_model) as server, Client(server.address) as client:
        for item in client.segment_stream(video(), in_flight=2, encoding=Encoding.RAW):
            assert item.id == answered
            assert np.unique(item.result().class_map).tolist() == [answered % 3]
            answered += 1
            assert sent <= answered + 2
    assert answered == 200
    require_no_threads()


def test_a_stream_asks_for_all_that_a_request_can(tiny_model: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = fcnseg.load(tiny_model, "cpu").segment(image, confidence=True)
    asked = {"encoding": Encoding.COCO_RLE, "heatmaps": ["red"], "confidence": True, "overlay": True}
    with running_server(tiny_model) as server, Client(server.address) as client:
        (item,) = client.segment_stream([("frame 7", image)], model="tiny", version="1", **asked)
        alone = client.segment(image, **asked)
    answer = item.result()
    assert item.id == "frame 7"
    np.testing.assert_array_equal(answer.class_map, expected.class_map)
    assert expected.confidence is not None
    np.testing.assert_array_equal(answer.confidence, expected.confidence)
    assert (answer.runs, answer.overlay) == (alone.runs, alone.overlay)
    assert answer.heatmaps[0].scores.tolist() == expected.heatmap[0].tolist()
    assert answer.timings.total_ms > 0


def test_what_cannot_be_read_is_told_in_its_place_and_the_rest_is_answered(tiny_model: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.jpg"
    rubbish.write_bytes(b"rubbish")
    gone = tmp_path / "gone.jpg"
    images = [IMAGE, rubbish, ("lost", gone), (17, np.zeros((2, 2), np.uint8)), np.zeros((30, 30, 3), np.uint8), IMAGE]
    limits = ServerConfig(limits=ImageLimits(max_pixels=100))
    with running_server(tiny_model, limits) as server, Client(server.address) as client:
        items = list(client.segment_stream(images, in_flight=1))
    assert [item.id for item in items] == [0, 1, "lost", 17, 4, 5]
    assert [type(item.error) for item in items] == [
        type(None),
        InvalidRequestError,
        ImageError,
        ImageError,
        InvalidRequestError,
        type(None),
    ]
    assert f"image {rubbish}: server" in str(items[1].error)
    assert isinstance(items[4].error, RequestError)
    assert items[4].error.field == "raw"
    with pytest.raises(ImageError, match=r"gone\.jpg cannot be read"):
        items[2].result()
    assert items[5].result().class_map.tolist() == [[2] * 6] * 4


def test_an_image_just_within_the_limit_on_messages_is_sent_and_one_beyond_is_told(tiny_model: Path) -> None:
    images = [("x" * 256, np.zeros((1, width, 3), np.uint8)) for width in (328, 340)]  # 984 and 1020 bytes of pixels
    with running_server(tiny_model) as server, Client(server.address, max_message_bytes=1000) as client:
        items = list(client.segment_stream(images, encoding=Encoding.ZSTD))
    assert [type(item.error) for item in items] == [type(None), ImageTooLargeError]


def test_an_unknown_model_is_told_of_every_image(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        items = list(client.segment_stream(frames(3), model="dog"))
    assert [type(item.error) for item in items] == [RemoteModelNotFoundError] * 3


def test_no_images_are_no_items(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        assert list(client.segment_stream([])) == []
    require_no_threads()


def test_leaving_an_endless_stream_ends_it_and_its_threads(tiny_model: Path) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield IMAGE

    with running_server(tiny_model) as server, Client(server.address) as client:
        for item in client.segment_stream(endless(), in_flight=3):
            if item.id == 5:
                break
        require_no_threads()
        assert taken <= 5 + 1 + 3
        assert client.segment(IMAGE).class_map.shape == (4, 6)


def test_a_stream_that_was_left_lets_go_of_its_images_at_once(tiny_model: Path) -> None:
    """Not when Python looks for cycles: they may be a camera's, which another is to open."""
    images = (frame for frame in frames(100))
    kept = weakref.ref(images)
    gc.disable()
    try:
        with running_server(tiny_model) as server, Client(server.address) as client:
            items = client.segment_stream(images)
            del images
            next(items)
            items.close()
            del items
            wait_until(lambda: kept() is None)
    finally:
        gc.enable()


def test_a_reader_that_pauses_holds_the_images_back(tiny_model: Path) -> None:
    images = iter(frames(50))
    with running_server(tiny_model) as server, Client(server.address) as client:
        items = client.segment_stream(images, in_flight=4)
        assert next(items).id == 0
        time.sleep(0.3)
        assert len(list(images)) >= 50 - 1 - 4
        items.close()


def test_answers_are_received_while_their_reader_is_busy() -> None:
    """The server would leave a client that does not read for a minute."""
    wide = Wide()
    with server_that_answers(stream=wide) as address, Client(address) as client:
        items = client.segment_stream([IMAGE] * 8, in_flight=8)
        assert next(items).id == 0
        assert wide.all_sent.wait(60)
        assert [item.id for item in items] == [1, 2, 3, 4, 5, 6, 7]
    require_no_threads()


def test_files_that_cannot_be_read_do_not_pile_up() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "/nowhere/gone.jpg"

    with server_that_answers(stream=lambda requests, _: iter(list(requests)[:0])) as address, Client(address) as client:
        items = client.segment_stream(endless(), in_flight=3)
        assert isinstance(next(items).error, ImageError)
        time.sleep(0.2)
        assert taken <= 5
        items.close()
    require_no_threads()


def test_what_the_images_raise_comes_after_the_answers_to_those_before(tiny_model: Path) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from frames(3)
        raise OSError("the camera is gone")

    with running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream(camera())
        seen = [next(stream).id for _ in range(3)]
        with pytest.raises(OSError, match="the camera is gone"):
            next(stream)
    assert seen == [0, 1, 2]
    require_no_threads()


def test_images_that_end_the_program_end_it_and_not_a_thread_alone(tiny_model: Path) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield IMAGE
        sys.exit("the camera is gone")

    with running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream(camera())
        assert next(stream).id == 0
        with pytest.raises(SystemExit, match="the camera is gone"):
            next(stream)
    require_no_threads()


def test_a_slow_source_does_not_hold_answers_back(tiny_model: Path) -> None:
    more = threading.Event()

    def live() -> Iterator[NDArray[np.uint8]]:
        yield IMAGE
        more.wait(20)
        yield IMAGE

    with running_server(tiny_model) as server, Client(server.address) as client:
        items = client.segment_stream(live())
        assert next(items).id == 0
        more.set()
        assert [item.id for item in items] == [1]


def test_a_stream_to_nowhere_is_told() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnavailableError, match="no server answers"):
        list(client.segment_stream(itertools.repeat(IMAGE)))
    require_no_threads()


def test_a_server_that_stops_ends_the_stream_after_what_it_has_taken(tiny_model: Path) -> None:
    answered = 0
    with running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream(itertools.repeat(IMAGE), in_flight=2)
        with pytest.raises(ServerUnavailableError):  # noqa: PT012 - any item may be the last
            for item in stream:
                item.result()
                answered += 1
                if answered == 5:
                    server.begin_stop()
    assert answered >= 5
    require_no_threads()


def test_an_idle_stream_is_told_that_the_server_has_gone(tiny_model: Path) -> None:
    forever = threading.Event()

    def waiting() -> Iterator[NDArray[np.uint8]]:
        yield IMAGE
        forever.wait(20)

    with Client("127.0.0.1:1"), running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream(waiting())
        next(stream)
        server.begin_stop()
        with pytest.raises(ServerUnavailableError):
            next(stream)
        forever.set()
    require_no_threads()


def test_a_server_that_falls_silent_is_left_after_the_timeout() -> None:
    silence = threading.Event()

    def answer(
        requests: Iterator[pb.SegmentStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SegmentStreamResponse]:
        context.add_callback(silence.set)
        yield pb.SegmentStreamResponse(id=next(requests).id, response=pb.SegmentResponse(class_map=ONE_PIXEL))
        silence.wait(60)

    with server_that_answers(stream=answer) as address, Client(address, timeout_s=2) as client:
        stream = client.segment_stream(itertools.repeat(IMAGE))
        assert next(stream).result().class_map.shape == (1, 1)
        assert len(threads_of_streams()) >= 2
        with pytest.raises(RequestTimeoutError, match="within 2 s"):
            next(stream)
        assert silence.wait(20)  # the call was cancelled at the server too
    require_no_threads()


def response(item_id: str) -> pb.SegmentStreamResponse:
    return pb.SegmentStreamResponse(id=item_id, response=pb.SegmentResponse(class_map=ONE_PIXEL))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["1", "0"], "answered image '1' of the stream in the place of 0"),
        (["0"], "ended the stream before it had answered every image"),
        (["0", "1", "2"], "answered '2' after the last image"),
    ],
)
def test_answers_that_are_not_those_of_the_images_end_the_stream(answers: list[str], message: str) -> None:
    def answer(requests: Iterator[pb.SegmentStreamRequest], _: object) -> Iterator[pb.SegmentStreamResponse]:
        list(itertools.islice(requests, 2))
        yield from map(response, answers)

    with (
        server_that_answers(stream=answer) as address,
        Client(address) as client,
        pytest.raises(RequestError, match=message),
    ):
        list(client.segment_stream([IMAGE, IMAGE]))
    require_no_threads()


def test_an_answer_that_is_broken_does_not_end_the_stream() -> None:
    def answer(requests: Iterator[pb.SegmentStreamRequest], _: object) -> Iterator[pb.SegmentStreamResponse]:
        for position, request in enumerate(requests):
            wire = ONE_PIXEL if position != 1 else pb.ClassMap()
            yield pb.SegmentStreamResponse(id=request.id, response=pb.SegmentResponse(class_map=wire))

    with server_that_answers(stream=answer) as address, Client(address) as client:
        items = list(client.segment_stream([IMAGE] * 3))
    assert [type(item.error) for item in items] == [type(None), RequestError, type(None)]


def test_a_failure_of_an_unknown_kind_is_a_request_error() -> None:
    failure = pb.Failure(code=99, message="of\nno kind")

    def answer(requests: Iterator[pb.SegmentStreamRequest], _: object) -> Iterator[pb.SegmentStreamResponse]:
        for request in requests:
            yield pb.SegmentStreamResponse(id=request.id, failure=failure)

    with server_that_answers(stream=answer) as address, Client(address) as client:
        (item,) = client.segment_stream([IMAGE])
    assert isinstance(item.error, RequestError)
    assert (item.error.code, str(item.error)) == ("UNKNOWN", f"server {address}: of no kind")


@pytest.mark.parametrize("images", ["photo.jpg", b"\xff\xd8", Path("photo.jpg")])
def test_one_image_is_no_stream(images: object) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UsageError, match="give a list"):
        client.segment_stream(images)  # type: ignore[arg-type]


def test_in_flight_is_at_least_one() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(UsageError, match="in_flight is 0"):
        client.segment_stream([], in_flight=0)


def test_an_id_that_is_too_long_ends_the_stream(tiny_model: Path) -> None:
    with running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream([IMAGE, ("x" * 257, IMAGE)])
        assert next(stream).id == 0
        with pytest.raises(UsageError, match="257 characters; use at most 256"):
            next(stream)


def test_an_id_that_is_no_text_ends_the_stream(tiny_model: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")  # a file's name that is not UTF-8
    with running_server(tiny_model) as server, Client(server.address) as client:
        stream = client.segment_stream([IMAGE, (name, IMAGE)])
        assert next(stream).id == 0
        with pytest.raises(UsageError, match=r"a stream's id 'caf\\udce9.jpg' is not Unicode text"):
            next(stream)


def test_streams_of_several_threads_share_a_client(tiny_model: Path) -> None:
    seen: dict[int, list[StreamItem]] = {}
    with running_server(tiny_model) as server, Client(server.address) as client:

        def follow(number: int) -> None:
            seen[number] = list(client.segment_stream(frames(20), in_flight=2))

        threads = [threading.Thread(target=follow, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [[item.id for item in seen[number]] for number in range(4)] == [list(range(20))] * 4
    assert all(item.error is None for items in seen.values() for item in items)


def test_closing_the_client_ends_its_stream_and_it_takes_nothing_more(tiny_model: Path) -> None:
    with running_server(tiny_model) as server:
        client = Client(server.address)
        stream = client.segment_stream(itertools.repeat(IMAGE), in_flight=2)
        next(stream)
        client.close()
        with pytest.raises(RequestError, match="was cancelled .* open client") as caught:
            list(stream)
        for ask in (client.list_models, lambda: client.segment(IMAGE), lambda: client.segment_stream([IMAGE])):
            with pytest.raises(UsageError, match=f"client of server {server.address} has been closed; make another"):
                ask()
    assert caught.value.code == "CANCELLED"
    require_no_threads()


def test_a_stream_of_a_client_that_was_closed_is_told(tiny_model: Path) -> None:
    with running_server(tiny_model) as server:
        client = Client(server.address)
        items = client.segment_stream([IMAGE])
        client.close()
        with pytest.raises(UsageError, match="has been closed"):
            next(items)


@pytest.mark.parametrize(
    "ask", [lambda client: client.segment(IMAGE), lambda client: list(client.segment_stream([IMAGE]))]
)
def test_a_client_that_is_closed_while_a_call_begins_is_told(tiny_model: Path, ask: Callable[[Client], object]) -> None:
    class Closing(trace.NonRecordingSpan):
        def get_span_context(self) -> trace.SpanContext:
            client.close()
            return super().get_span_context()

    with (
        running_server(tiny_model) as server,
        Client(server.address) as client,
        trace.use_span(Closing(trace.INVALID_SPAN_CONTEXT)),
        pytest.raises(UsageError, match="has been closed; make another"),
    ):
        ask(client)
    require_no_threads()
