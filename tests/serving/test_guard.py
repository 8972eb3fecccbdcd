"""Who may call what, seen by clients of every kind."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from fcnseg import AsyncClient, Client
from fcnseg.errors import ServerOverloadedError, UnauthenticatedError, UsageError
from fcnseg.images import ImageLimits
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.model_admin_pb2 import LoadModelRequest
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.allowance import Allowance
from serving.calls import Call, current_call
from serving.errors import AllowanceError
from serving.guard import ADMIN_METHODS
from serving.oip import inference_pb2 as oip
from serving.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from serving.pipeline import Pipeline
from serving.registry import ModelRegistry
from serving.security import Security
from serving.server import SERVICE, ServerConfig, largest_request
from serving.tokens import Tokens, make_token
from tests import http2
from tests.gated_segmenter import GatedSegmenter, registry_of
from tests.running_server import CPU_CONFIG, RunningServer, running_server
from tests.waiting import wait_until

CHANGES = ("RepositoryModelLoad", "RepositoryModelUnload", "LoadModel", "UnloadModel", "ReloadModel")
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
Ask = Callable[[grpc.Channel, Any], Any]


@dataclass
class TokensFile:
    """A file of tokens, and those that it knows."""

    path: Path
    plain: str
    admin: str
    slow: str
    narrow: str

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(lines))


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    made = {
        "plain": make_token("plain"),
        "admin": make_token("admin", admin=True),
        "slow": make_token("slow", rate=2),
        "narrow": make_token("narrow", concurrent=1),
    }
    path = tmp_path / "tokens.txt"
    path.write_text("\n".join(token.line for _, token in made.values()))
    return TokensFile(path, **{name: secret for name, (secret, _) in made.items()})


@pytest.fixture
def guarded(tiny_model: Path, tokens: TokensFile) -> Iterator[RunningServer]:
    with running_server(tiny_model, guarded_by(tokens)) as server:
        yield server


def guarded_by(tokens: TokensFile) -> ServerConfig:
    return ServerConfig(security=Security(tokens=Tokens(tokens.path)))


def segmentation(channel: grpc.Channel) -> SegmentationServiceStub:
    return SegmentationServiceStub(channel)  # type: ignore[no-untyped-call] # generated


def inference(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call] # generated


def triton_request() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[RED.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=(1, *RED.shape))
    return request


def red_request() -> pb.SegmentRequest:
    return pb.SegmentRequest(raw=pb.RawImage(height=4, width=6, rgb=RED.tobytes()))


CALLS: dict[str, Ask] = {
    "Segment": lambda channel, metadata: segmentation(channel).Segment(red_request(), metadata=metadata, timeout=10),
    "SegmentStream": lambda channel, metadata: list(
        segmentation(channel).SegmentStream(
            iter([pb.SegmentStreamRequest(request=red_request())] * 3), metadata=metadata, timeout=10
        )
    ),
    "ListModels": lambda channel, metadata: segmentation(channel).ListModels(
        pb.ListModelsRequest(), metadata=metadata, timeout=10
    ),
    "ServerLive": lambda channel, metadata: inference(channel).ServerLive(
        oip.ServerLiveRequest(), metadata=metadata, timeout=10
    ),
    "ModelInfer": lambda channel, metadata: inference(channel).ModelInfer(
        triton_request(), metadata=metadata, timeout=10
    ),
    "ModelStreamInfer": lambda channel, metadata: list(
        inference(channel).ModelStreamInfer(iter([triton_request()] * 3), metadata=metadata, timeout=10)
    ),
    "RepositoryModelLoad": lambda channel, metadata: inference(channel).RepositoryModelLoad(
        oip.RepositoryModelLoadRequest(model_name="tiny"), metadata=metadata, timeout=10
    ),
    "reflection": lambda channel, metadata: list(
        reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata, timeout=10
        )
    ),
    "no method": lambda channel, metadata: channel.unary_unary("/nobody/Nothing")(b"", metadata=metadata, timeout=10),
}


def outcome(server: RunningServer, call: Ask, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        try:
            call(channel, metadata)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)  # noqa: PT017 - of two kinds, both have a code
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_method_wants_a_token(guarded: RunningServer, tokens: TokensFile, call: Ask) -> None:
    nothing = (UNAUTHENTICATED, "the request brings no token; send one as 'authorization: Bearer TOKEN'")
    assert outcome(guarded, call) == nothing
    assert outcome(guarded, call, bearer(tokens.plain), bearer(tokens.admin)) == nothing
    code, message = outcome(guarded, call, bearer("guess"))
    assert (code, message.partition(";")[0]) == (UNAUTHENTICATED, "the server does not know the request's token")
    assert outcome(guarded, call, ("authorization", f"Basic {tokens.plain}"))[0] is UNAUTHENTICATED
    assert outcome(guarded, call, ("authorization", tokens.plain))[0] is UNAUTHENTICATED


@pytest.mark.parametrize("name", [name for name in CALLS if name not in {"RepositoryModelLoad", "no method"}])
def test_a_token_opens_every_method_that_changes_nothing(guarded: RunningServer, tokens: TokensFile, name: str) -> None:
    for authorization in (bearer(tokens.plain), bearer(tokens.admin), ("authorization", f"bEARER  {tokens.narrow}")):
        assert outcome(guarded, CALLS[name], authorization) == (grpc.StatusCode.OK, "")


def test_an_unknown_method_is_unknown_to_those_with_a_token(guarded: RunningServer, tokens: TokensFile) -> None:
    assert outcome(guarded, CALLS["no method"], bearer(tokens.plain))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_both_clients_bring_their_token(guarded: RunningServer, tokens: TokensFile) -> None:
    with Client(guarded.address, token=tokens.plain) as client:
        assert client.segment(RED).class_map.tolist() == [[0] * 6] * 4
        assert [item.error for item in client.segment_stream([RED] * 3)] == [None] * 3
    with Client(guarded.address) as client:
        with pytest.raises(UnauthenticatedError, match="the request brings no token"):
            client.segment(RED)
        with pytest.raises(UnauthenticatedError, match="the request brings no token"):
            list(client.segment_stream([RED]))
    async with AsyncClient(guarded.address, token=tokens.plain[:-1]) as other:
        with pytest.raises(UnauthenticatedError, match="does not know the request's token"):
            await other.segment(RED)
        with pytest.raises(UnauthenticatedError, match="does not know the request's token"):
            _ = [item async for item in other.segment_stream([RED])]


async def test_a_stream_that_is_refused_as_it_is_sent_tells_why(guarded: RunningServer, tokens: TokensFile) -> None:
    """The refusal comes while an image is being sent; both in one turn of the event loop, at every second try or so."""
    async with AsyncClient(guarded.address, token=tokens.plain[:-1]) as client:
        for _ in range(40):
            with pytest.raises(UnauthenticatedError, match="does not know the request's token"):
                _ = [item async for item in client.segment_stream([RED] * 3)]


def test_what_is_refused_is_neither_received_nor_parsed(tiny_model: Path, tokens: TokensFile) -> None:
    """A message beyond the limit is refused for its size only where it is received."""
    config = replace(guarded_by(tokens), limits=ImageLimits(max_bytes=1000, max_pixels=1000))
    too_large = bytes(largest_request(config.limits) + 1)

    def send(data: bytes) -> Ask:
        return lambda channel, metadata: channel.unary_unary(f"/{SERVICE}/Segment")(data, metadata=metadata, timeout=20)

    with running_server(tiny_model, config) as server:
        assert outcome(server, send(too_large))[0] is UNAUTHENTICATED
        assert outcome(server, send(b"\xff"))[0] is UNAUTHENTICATED
        assert outcome(server, send(too_large), bearer(tokens.plain))[0] is RESOURCE_EXHAUSTED
        assert outcome(server, send(b"\xff"), bearer(tokens.plain))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_health_is_open(guarded: RunningServer) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10).status == serving
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(watch).status == serving
        watch.cancel()


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_nobody_makes_health_hold_a_large_message(guarded: RunningServer, method: str) -> None:
    request = health_pb2.HealthCheckRequest(service="x" * (1 << 20))

    def ask(channel: grpc.Channel, metadata: Any) -> Any:
        stub = health_pb2_grpc.HealthStub(channel)
        if method == "Check":
            return stub.Check(request, metadata=metadata, timeout=10)
        return next(stub.Watch(request, metadata=metadata, timeout=10))

    message = f"the request has {request.ByteSize()} bytes; health and reflection take at most 4096, enough for a name"
    assert outcome(guarded, ask) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def change(server: RunningServer, *metadata: tuple[str, str]) -> set[tuple[grpc.StatusCode, str]]:
    """Return what becomes of every method that changes what is served."""

    def call(method: str) -> Ask:
        of_oip = oip.RepositoryModelLoadRequest(model_name="nobody").SerializeToString()
        request = of_oip if "inference" in method else LoadModelRequest(model_name="nobody").SerializeToString()
        return lambda channel, given: channel.unary_unary(method)(request, metadata=given, timeout=10)

    return {outcome(server, call(method), *metadata) for method in ADMIN_METHODS}


def codes(outcomes: set[tuple[grpc.StatusCode, str]]) -> set[grpc.StatusCode]:
    return {code for code, _ in outcomes}


def test_models_are_loaded_and_unloaded_by_those_whose_token_says_so(
    guarded: RunningServer, tokens: TokensFile
) -> None:
    assert {method.rpartition("/")[2] for method in ADMIN_METHODS} == set(CHANGES)
    assert codes(change(guarded, bearer(tokens.admin))) == {grpc.StatusCode.NOT_FOUND}
    assert change(guarded, bearer(tokens.plain)) == {
        (PERMISSION_DENIED, f"{name} was refused: it needs a token whose line on the server says admin")
        for name in CHANGES
    }
    assert codes(change(guarded)) == {UNAUTHENTICATED}


@pytest.mark.parametrize(
    ("host", "security", "expected"),
    [
        ("127.0.0.1", Security(), grpc.StatusCode.NOT_FOUND),
        ("0.0.0.0", Security(), PERMISSION_DENIED),  # noqa: S104 - that is the point
        ("0.0.0.0", Security(open_admin=True), grpc.StatusCode.NOT_FOUND),  # noqa: S104
        ("127.0.0.1", Security(admin_closed_by="--no-admin"), PERMISSION_DENIED),
    ],
)
def test_without_tokens_models_are_changed_from_this_machine_alone(
    tiny_model: Path, host: str, security: Security, expected: grpc.StatusCode
) -> None:
    with running_server(tiny_model, ServerConfig(host, security=security)) as server:
        server.address = f"127.0.0.1:{server.address.rpartition(':')[2]}"
        assert codes(change(server)) == {expected}
        assert outcome(server, CALLS["Segment"]) == (grpc.StatusCode.OK, "")


def test_nobody_changes_models_where_that_is_switched_off(tiny_model: Path, tokens: TokensFile) -> None:
    security = Security(tokens=Tokens(tokens.path), admin_closed_by="--no-admin")
    with running_server(tiny_model, ServerConfig(security=security)) as server:
        outcomes = change(server, bearer(tokens.admin))
    assert codes(outcomes) == {PERMISSION_DENIED}
    assert all("started with --no-admin" in message for _, message in outcomes)


def test_options_that_contradict_each_other_are_refused(tokens: TokensFile) -> None:
    with pytest.raises(UsageError, match="--open-admin and --no-admin contradict each other"):
        Security(open_admin=True, admin_closed_by="--no-admin")
    with pytest.raises(UsageError, match="--open-admin has no effect with --tokens"):
        Security(open_admin=True, tokens=Tokens(tokens.path))


def test_reflection_can_be_switched_off(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(security=Security(reflection=False))) as server:
        assert outcome(server, CALLS["reflection"])[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", ["Segment", "ModelInfer", "ListModels"])
def test_a_token_over_its_rate_is_told_when_to_ask_again(guarded: RunningServer, tokens: TokensFile, name: str) -> None:
    with grpc.insecure_channel(guarded.address, options=[("grpc.enable_retries", 0)]) as channel:
        for _ in range(2):
            CALLS[name](channel, [bearer(tokens.slow)])
        with pytest.raises(grpc.RpcError) as caught:  # noqa: PT012 - a slow machine leaves time for some more
            for _ in range(100):
                CALLS[name](channel, [bearer(tokens.slow)])
        CALLS[name](channel, [bearer(tokens.plain)])
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is RESOURCE_EXHAUSTED
        assert caught.value.details().startswith("this token may send 2 requests a second; ask again in 0.")
        (detail,) = rpc_status.from_call(caught.value).details
        hint = RetryInfo()
        assert detail.Unpack(hint)
        assert 0 < hint.retry_delay.ToMilliseconds() <= 500
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == str(
            hint.retry_delay.ToMilliseconds()
        )


def test_clients_obey_the_time_to_ask_again(guarded: RunningServer, tokens: TokensFile) -> None:
    with Client(guarded.address, token=tokens.slow) as client:
        started = time.monotonic()
        for _ in range(3):
            client.segment(RED)
        assert time.monotonic() - started > 0.4


async def test_clients_do_not_wait_for_a_time_to_ask_again_that_is_beyond_their_deadline(
    tiny_model: Path, tokens: TokensFile
) -> None:
    secret, rare = make_token("rare", rate=0.001)
    tokens.write(rare.line)
    with running_server(tiny_model, guarded_by(tokens)) as server:
        with Client(server.address, token=secret, timeout_s=60) as client:
            client.segment(RED)
            with pytest.raises(ServerOverloadedError, match="this token may send") as caught:
                client.segment(RED)
        assert (caught.value.retry_after_s or 0) > 60
        async with AsyncClient(server.address, token=secret, timeout_s=60) as other:
            with pytest.raises(ServerOverloadedError, match="this token may send"):
                await other.segment(RED)
        with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
            pushbacks = [pushback(channel, secret, timeout_s) for timeout_s in (900, 3000, None)]
    assert pushbacks[0] == -1
    assert min(pushbacks[1:]) > 900_000


def pushback(channel: grpc.Channel, secret: str, timeout_s: float | None) -> int:
    """Return how many milliseconds a client is told to wait before it retries, negative for never."""
    with pytest.raises(grpc.RpcError) as caught:
        segmentation(channel).Segment(red_request(), metadata=[bearer(secret)], timeout=timeout_s)
    assert isinstance(caught.value, grpc.Call)
    return int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"])


def test_a_stream_is_slowed_down_to_its_tokens_rate(guarded: RunningServer, tokens: TokensFile) -> None:
    with Client(guarded.address, token=tokens.slow) as client:
        started = time.monotonic()
        assert [item.error for item in client.segment_stream([RED] * 4)] == [None] * 4
        assert time.monotonic() - started > 0.9


def test_streams_that_are_cancelled_while_they_are_slowed_down_owe_nothing(
    tiny_model: Path, tokens: TokensFile
) -> None:
    secret, rare = make_token("rare", rate=0.001)
    tokens.write(rare.line)
    with (
        running_server(tiny_model, guarded_by(tokens)) as server,
        Client(server.address, token=secret, retries=0) as client,
        grpc.insecure_channel(server.address) as channel,
    ):

        def wait_s() -> float:
            with pytest.raises(ServerOverloadedError) as caught:
                client.list_models()
            assert caught.value.retry_after_s is not None
            return caught.value.retry_after_s

        client.list_models()
        item = pb.SegmentStreamRequest(request=red_request())
        streams = [
            segmentation(channel).SegmentStream(iter([item]), metadata=[bearer(secret)], timeout=60) for _ in range(5)
        ]
        wait_until(lambda: wait_s() > 4000)  # the last of them waits as long
        for stream in streams:
            stream.cancel()
        wait_until(lambda: wait_s() <= 1000)


def test_a_token_has_no_more_calls_at_a_time_than_it_may(tiny_model: Path, tokens: TokensFile) -> None:
    gated = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(gated, tiny_model), guarded_by(tokens)) as server,
        Client(server.address, token=tokens.narrow, retries=0) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        held = thread.submit(client.segment, RED)
        assert gated.begun.acquire(timeout=60)
        busy = "1 calls with this token are under way, as many as it may have; ask again later"
        for name in ("Segment", "SegmentStream", "ModelStreamInfer", "reflection"):
            assert outcome(server, CALLS[name], bearer(tokens.narrow)) == (RESOURCE_EXHAUSTED, busy)
        with pytest.raises(ServerOverloadedError) as caught:
            client.segment(RED)
        assert caught.value.retry_after_s == 0.25
        assert outcome(server, CALLS["ListModels"], bearer(tokens.plain)) == (grpc.StatusCode.OK, "")
        gated.gate.set()
        held.result(60)
        client.segment(RED)


def test_a_client_that_reads_no_answer_is_refused_more_of_them(tiny_model: Path, tokens: TokensFile) -> None:
    """They hold memory until its connection ends, and it would hold all that there is."""
    registry = ModelRegistry([tiny_model], CPU_CONFIG)
    statistics = registry.models[0].statistics

    def answered(count: int) -> bool:
        return statistics.success.count == count

    with (
        running_server(registry, guarded_by(tokens)) as server,
        Client(server.address, token=tokens.narrow, retries=0) as client,
        Client(server.address, token=tokens.narrow, retries=4) as patient,
    ):
        with ExitStack() as connections:
            for number in (1, 2):
                host, port = server.address.split(":")
                unread = connections.enter_context(socket.create_connection((host, int(port)), timeout=20))
                call = http2.begin(authorization=f"Bearer {tokens.narrow}")
                unread.sendall(http2.greeting(window=0) + call + http2.send(red_request()))
                wait_until(partial(answered, number))
            for _ in range(3):
                with pytest.raises(ServerOverloadedError, match="2 answers to this token have not been read"):
                    client.segment(RED)
        assert len(patient.list_models()) == 1


def test_a_stream_counts_until_it_ends_or_its_client_goes_away(tiny_model: Path, tokens: TokensFile) -> None:
    gated = GatedSegmenter(tiny_model)
    with (
        running_server(registry_of(gated, tiny_model), guarded_by(tokens)) as server,
        Client(server.address, token=tokens.narrow, retries=0) as client,
        Client(server.address, token=tokens.narrow, retries=4) as patient,
    ):
        with grpc.insecure_channel(server.address) as channel:
            item = pb.SegmentStreamRequest(request=red_request())
            stream = segmentation(channel).SegmentStream(iter([item]), metadata=[bearer(tokens.narrow)], timeout=20)
            assert gated.begun.acquire(timeout=60)
            with pytest.raises(ServerOverloadedError):
                client.list_models()
            stream.cancel()
        gated.gate.set()
        assert len(patient.list_models()) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_cancelled_call_leaves_behind_counts_until_it_is_done(
    tiny_model: Path, tokens: TokensFile, caplog: pytest.LogCaptureFixture, *, streamed: bool
) -> None:
    caplog.set_level(logging.INFO, "serving.calls")
    gated = GatedSegmenter(tiny_model)
    registry = registry_of(gated, tiny_model)
    held = registry.held
    with (
        running_server(registry, guarded_by(tokens)) as server,
        Client(server.address, token=tokens.narrow, retries=0) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub, metadata = segmentation(channel), [bearer(tokens.narrow)]
        items = iter([pb.SegmentStreamRequest(request=red_request())])
        if streamed:
            call = stub.SegmentStream(items, metadata=metadata, timeout=20)
        else:
            call = stub.Segment.future(red_request(), metadata=metadata, timeout=20)
        assert gated.begun.acquire(timeout=60)
        call.cancel()
        wait_until(lambda: "call ended" in caplog.messages)
        with pytest.raises(ServerOverloadedError, match="1 calls with this token are under way"):
            client.list_models()
        assert outcome(server, CALLS["ListModels"], bearer(tokens.plain)) == (grpc.StatusCode.OK, "")
        gated.gate.set()
        wait_until(lambda: held.taken == 0)
        assert len(client.list_models()) == 1


async def test_work_in_a_codec_thread_that_nobody_waits_for_counts_until_it_is_done() -> None:
    pipeline, allowance = Pipeline(ImageLimits()), Allowance(concurrent=1)
    begun, gate = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(60)

    current_call.set(Call("method", "id", allowance=allowance))
    task = asyncio.create_task(pipeline.in_thread(work))
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(AllowanceError), allowance.call():
        pass
    gate.set()
    await asyncio.to_thread(wait_until, lambda: allowance.calls == 0)
    pipeline.close()


def test_changes_of_the_file_are_seen_without_a_restart(
    guarded: RunningServer, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    call = CALLS["ListModels"]
    new, made = make_token("new")
    assert outcome(guarded, call, bearer(new))[0] is UNAUTHENTICATED
    tokens.write("# rotated", made.line)
    assert outcome(guarded, call, bearer(new))[0] is grpc.StatusCode.OK
    assert outcome(guarded, call, bearer(tokens.plain))[0] is UNAUTHENTICATED
    tokens.write(made.line, "broken line")
    for _ in range(2):
        assert outcome(guarded, call, bearer(new))[0] is grpc.StatusCode.OK
    (record,) = [record for record in caplog.records if record.name == "serving.reloading"]
    assert record.getMessage().startswith(
        f"the files read before stay in use: tokens file {tokens.path}, line 2: a name"
    )
    tokens.write("# nobody")
    assert outcome(guarded, call, bearer(new))[0] is UNAUTHENTICATED


def test_the_log_tells_who_called_and_from_where(
    guarded: RunningServer, tokens: TokensFile, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("INFO", "serving.calls"),
        Client(guarded.address, token=tokens.plain) as known,
        Client(guarded.address) as stranger,
    ):
        known.segment(RED)
        assert len(list(known.segment_stream([RED]))) == 1
        with pytest.raises(UnauthenticatedError):
            stranger.segment(RED)
        wait_until(lambda: len(caplog.records) == 3)
    fields = [vars(record)["fields"] for record in caplog.records]
    assert [told.get("client") for told in fields] == ["plain", "plain", None]
    assert all(told["peer"].startswith("ipv4:127.0.0.1:") for told in fields)


def test_logs_name_tokens_and_never_hold_one(
    guarded: RunningServer, tokens: TokensFile, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    secrets = [tokens.plain, tokens.admin, "a-guess-of-a-token"]
    for secret in secrets:
        for call in CALLS.values():
            outcome(guarded, call, bearer(secret))
    told = capfd.readouterr()
    everything = caplog.text + told.out + told.err
    assert "RepositoryModelLoad is called by the holder of token admin" in everything
    assert "RepositoryModelLoad was refused to the holder of token plain" in everything
    assert not any(secret in everything for secret in secrets)
    assert not any(line.split()[1] in everything for line in tokens.path.read_text().splitlines())
