"""What a running server writes of real clients' requests."""

import io
import json
import logging
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.logs import HumanFormatter, JsonFormatter
from tests import http2
from tests.running_server import running_server
from tests.server_process import free_port, server_process
from tests.tiny_model import write_tiny_model
from tests.untimed import untimed
from tests.waiting import wait_until

RED = pb.SegmentRequest(raw=pb.RawImage(height=4, width=6, rgb=bytes((255, 0, 0)) * 24))
FRESH = re.compile(r"[0-9a-f]{32}")
STAGES = ("decode_ms", "queue_ms", "infer_ms", "encode_ms")


@pytest.fixture
def written() -> Iterator[Callable[[logging.Formatter], io.StringIO]]:
    """Take what the server logs from now on, in a format."""
    logger, handlers = logging.getLogger("serving"), []

    def write(formatter: logging.Formatter) -> io.StringIO:
        handlers.append(logging.StreamHandler(io.StringIO()))
        handlers[-1].setFormatter(formatter)
        logger.addHandler(handlers[-1])
        logger.setLevel(logging.INFO)
        return handlers[-1].stream

    yield write
    logger.setLevel(logging.NOTSET)
    for handler in handlers:
        logger.removeHandler(handler)


def stub_of(channel: grpc.Channel) -> Any:
    return SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated


def returned_id(call: grpc.Call) -> str:
    (value,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    assert isinstance(value, str)
    return value


def fail(stub: Any, request: pb.SegmentRequest, **options: Any) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request, timeout=10, **options)
    assert isinstance(caught.value, grpc.Call)
    return caught.value


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_request_is_a_json_line_with_the_clients_id(
    tiny_model: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream = written(JsonFormatter())
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        stub = stub_of(channel)
        _, call = stub.Segment.with_call(RED, timeout=10, metadata=[("x-request-id", "frame-17")])
        refused = fail(stub, pb.SegmentRequest(encoded=b"no image"), metadata=[("x-request-id", "frame-18")])
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    answered, failed = lines(stream)
    assert (returned_id(call), returned_id(refused)) == ("frame-17", "frame-18")
    assert "grpc-status-details-bin" in dict(refused.trailing_metadata())
    assert (answered["request_id"], failed["request_id"]) == ("frame-17", "frame-18")
    assert (answered["code"], failed["code"]) == ("OK", "INVALID_ARGUMENT")
    assert answered["method"] == "fcnseg.v1.SegmentationService/Segment"
    assert (answered["model"], answered["height"], answered["width"], answered["images"]) == ("tiny/1", 4, 6, 1)
    assert 0 < sum(answered[stage] for stage in STAGES) < answered["total_ms"]
    assert (answered["level"], answered["logger"]) == ("INFO", "serving.calls")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", answered["time"])
    assert STAGES[0] not in failed
    assert failed["error"] == refused.details()
    assert "error" not in answered


def test_lines_of_requests_at_the_same_time_are_not_mixed_up(
    tiny_model: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream = written(JsonFormatter())

    def ask(width: int) -> str:
        request = pb.SegmentRequest(raw=pb.RawImage(height=4, width=width, rgb=bytes(12 * width)))
        return returned_id(stub.Segment.with_call(request, timeout=10, metadata=[("x-request-id", f"w{width}")])[1])

    with (
        running_server(tiny_model) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(16) as threads,
    ):
        stub = stub_of(channel)
        assert list(threads.map(ask, range(1, 101))) == [f"w{width}" for width in range(1, 101)]
    assert sorted((line["width"], line["request_id"]) for line in lines(stream)) == [
        (w, f"w{w}") for w in range(1, 101)
    ]


def test_a_stream_is_one_line_that_sums_its_images(
    tiny_model: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream = written(JsonFormatter())
    requests = [pb.SegmentStreamRequest(id=str(i), request=RED) for i in range(5)]
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        answers = stub_of(channel).SegmentStream(iter(requests), timeout=10, metadata=[("x-request-id", "video")])
        timings = [answer.response.timings for answer in answers]
        assert returned_id(answers) == "video"
    (line,) = lines(stream)
    assert (line["request_id"], line["images"], line["code"]) == ("video", 5, "OK")
    for stage in STAGES:
        assert line[stage] == pytest.approx(sum(getattr(t, stage) for t in timings), abs=1e-2)


def test_a_fault_is_logged_whole_with_the_requests_id(
    tmp_path: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream, human = written(JsonFormatter()), written(HumanFormatter())
    path = write_tiny_model(tmp_path / "moody.onnx", fails_on_magenta=True)
    magenta = pb.SegmentRequest(raw=pb.RawImage(height=4, width=4, rgb=bytes((255, 0, 255)) * 16))
    with running_server(path) as server, grpc.insecure_channel(server.address) as channel:
        call = fail(stub_of(channel), magenta, metadata=[("x-request-id", "why?")])
    assert call.code() is grpc.StatusCode.INTERNAL
    fault, request = lines(stream)
    assert (fault["level"], request["level"], request["code"]) == ("ERROR", "INFO", "INTERNAL")
    assert fault["exception"].startswith("Traceback")
    assert [fault["request_id"], request["request_id"], returned_id(call)] == ["why?"] * 3
    first, *_, last = human.getvalue().splitlines()
    first, last = untimed(first), untimed(last)
    assert first == "ERROR serving.statuses: /fcnseg.v1.SegmentationService/Segment failed request_id=why?"
    assert last.startswith(
        "INFO serving.calls: call ended method=fcnseg.v1.SegmentationService/Segment code=INTERNAL model=moody/1"
    )
    assert last.endswith(" request_id=why?")


def test_what_is_no_single_word_is_quoted_for_people(
    tmp_path: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream = written(HumanFormatter())
    path = write_tiny_model(tmp_path / "two words.onnx")
    with running_server(path) as server, grpc.insecure_channel(server.address) as channel:
        stub_of(channel).Segment(RED, timeout=10)
        fail(stub_of(channel), pb.SegmentRequest(model_name='a\nERROR "x"'), metadata=[("x-request-id", 'say"cheese')])
    answered, failed = stream.getvalue().splitlines()
    assert ' model="two words/1" height=4 ' in answered
    assert " code=NOT_FOUND " in failed
    assert ' error="no model ' in failed
    assert failed.endswith(' request_id="say\\"cheese"')


def test_a_message_is_one_line_that_tells_a_terminal_nothing(
    written: Callable[[logging.Formatter], io.StringIO],
) -> None:
    human, machines = written(HumanFormatter()), written(JsonFormatter())
    logging.getLogger("serving").warning("no model: %s", "ein \x1b[31mrötlicher\nINFO x: \u202eop")
    assert untimed(human.getvalue()) == "WARNING serving: no model: ein \\x1b[31mrötlicher\\nINFO x: \\u202eop\n"
    assert lines(machines)[0]["message"] == "no model: ein \x1b[31mrötlicher\nINFO x: \u202eop"


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", 'a"b code=OK', " padded "])
def test_an_id_that_is_none_is_replaced(
    tiny_model: Path, written: Callable[[logging.Formatter], io.StringIO], given: str
) -> None:
    stream = written(JsonFormatter())
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        _, call = stub_of(channel).Segment.with_call(RED, timeout=10, metadata=[("x-request-id", given)])
    (line,) = lines(stream)
    assert line["request_id"] == returned_id(call)
    assert FRESH.fullmatch(returned_id(call)) or returned_id(call) == given.strip() == "padded"


def test_requests_without_an_id_get_different_ones(
    tiny_model: Path, written: Callable[[logging.Formatter], io.StringIO]
) -> None:
    stream = written(JsonFormatter())
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        calls = [stub_of(channel).Segment.with_call(RED, timeout=10)[1] for _ in range(3)]
        longest = "~" * 64
        _, call = stub_of(channel).Segment.with_call(RED, timeout=10, metadata=[("x-request-id", longest)])
    ids = [returned_id(call) for call in calls]
    assert len(set(ids)) == 3
    assert all(FRESH.fullmatch(value) for value in ids)
    assert returned_id(call) == longest
    assert [line["request_id"] for line in lines(stream)] == [*ids, longest]


def test_strangers_write_nothing_into_the_log(tiny_model: Path, tmp_path: Path) -> None:
    forged = b'\n{"level": "ERROR", "message": "forged"}\n'
    log = tmp_path / "log"
    with server_process(tiny_model, free_port(), "--log-format", "json", log=log) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(http2.greeting() + http2.frame(http2.GOAWAY, payload=bytes(7) + b"\x02" + forged))
            time.sleep(0.5)
        with socket.create_connection((host, int(port))) as unread:
            unread.sendall(http2.greeting(window=0) + http2.begin() + http2.send(RED))
            wait_until(lambda: '"code": "OK"' in log.read_text())
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # without a farewell
        with socket.create_connection((host, int(port))) as odd:
            odd.sendall(http2.greeting() + http2.begin(authorization="Bearer \udcff\n") + http2.send(RED))
            wait_until(lambda: log.read_text().count('"code": "OK"') == 2)
        time.sleep(0.5)
        server.begin_stop()
        assert server.wait_stopped() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["level"], line["message"]) for line in lines[:-1]] == [("INFO", "call ended")] * 2
    assert lines[-1]["message"].startswith("stopping")
