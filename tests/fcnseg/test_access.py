"""How clients bring tokens, without a server that asks for them; tests/serving/test_guard.py has those."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from fcnseg import AsyncClient, Client, ClientTls
from fcnseg.commands.request import request
from fcnseg.errors import PermissionDeniedError, RequestError, ServerUnavailableError, UnauthenticatedError, UsageError
from fcnseg.v1 import segmentation_pb2 as pb
from tests.other_server import ONE_PIXEL, server_that_answers
from tests.server_process import free_port

IMAGE = np.zeros((1, 1, 3), np.uint8)
TOKEN = "fcnseg_Ab0-_.~+/="  # noqa: S105 - no server knows it


@pytest.fixture
def seen() -> Iterator[tuple[str, list[str]]]:
    """A server's address, and the authorizations that it is shown."""
    shown: list[str] = []

    def look(context: grpc.ServicerContext) -> None:
        shown.extend(str(value) for key, value in context.invocation_metadata() if key == "authorization")

    def answer(_: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        look(context)
        return pb.SegmentResponse(class_map=ONE_PIXEL)

    def stream(
        requests: Iterator[pb.SegmentStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SegmentStreamResponse]:
        look(context)
        for item in requests:
            yield pb.SegmentStreamResponse(id=item.id, response=pb.SegmentResponse(class_map=ONE_PIXEL))

    with server_that_answers(answer, stream) as address:
        yield address, shown


async def test_a_token_goes_with_calls_and_streams(seen: tuple[str, list[str]]) -> None:
    address, shown = seen
    with Client(address, token=TOKEN) as client:
        client.segment(IMAGE)
        assert [item.error for item in client.segment_stream([IMAGE])] == [None]
    async with AsyncClient(address, token=TOKEN) as other:
        await other.segment(IMAGE)
        assert [item.error async for item in other.segment_stream([IMAGE])] == [None]
    assert shown == [f"Bearer {TOKEN}"] * 4


def test_without_a_token_none_is_shown(seen: tuple[str, list[str]]) -> None:
    address, shown = seen
    with Client(address) as client:
        client.segment(IMAGE)
    assert shown == []


@pytest.mark.parametrize("token", ["", "two words", "line\n", "grün", "x" * 1025, '"quoted"'])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(UsageError, match=f"the token has {len(token)} characters") as caught:
        Client("127.0.0.1:1", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize(
    "server", ["example.org:50051", "10.0.0.1:50051", "dns:///localhost:50051", "ipv4:127.0.0.1:1,10.0.0.1:1"]
)
def test_a_token_goes_to_another_machine_over_tls_alone(server: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(UsageError, match=r"unencrypted, .*--tls or --ca FILE.*--token-in-clear") as caught:
            make(server, token=TOKEN)
        assert TOKEN not in str(caught.value)
    Client(server, token=TOKEN, tls=True).close()
    Client(server, token=TOKEN, token_in_clear=True).close()
    for local in ("localhost:1", "127.0.0.1:1", "[::1]:1"):
        Client(local, token=TOKEN).close()


def test_a_token_in_clear_takes_no_way_over_a_proxy(
    seen: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, shown = seen
    monkeypatch.setenv("grpc_proxy", f"http://127.0.0.1:{free_port()}")
    for exception in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(exception, raising=False)
    with Client(address, token=TOKEN, retries=0) as client:
        client.segment(IMAGE)
    assert shown == [f"Bearer {TOKEN}"]
    with Client(f"dns:///{address}", retries=0) as client, pytest.raises(ServerUnavailableError):
        client.segment(IMAGE)  # it asks the proxy, which is not there


def test_a_file_that_is_no_certificate_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("rubbish")
    with pytest.raises(UsageError, match=f"{path} holds no certificate"):
        Client("127.0.0.1:1", tls=ClientTls(path))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_refusals_are_errors_of_their_own(code: grpc.StatusCode, kind: type[RequestError]) -> None:
    def refuse(_: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        context.abort(code, "not you")
        raise AssertionError

    with server_that_answers(refuse) as address, Client(address) as client:
        with pytest.raises(kind, match=f"server {address}: not you") as caught:
            client.segment(IMAGE)
        assert (caught.value.code, caught.value.exit_code) == (code.name, 2)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), IMAGE)
    return path


def run(photo: Path, server: str, *options: object, variable: str | None = None) -> None:
    arguments = [server, str(photo), "-o", str(photo.with_name("mask.npy")), *map(str, options)]
    environment = {"FCNSEG_TOKEN": variable}
    CliRunner().invoke(request, arguments, env=environment, catch_exceptions=False, standalone_mode=False)


def test_a_token_comes_from_a_file_or_else_from_the_environment(seen: tuple[str, list[str]], photo: Path) -> None:
    address, shown = seen
    path = photo.with_name("token")
    path.write_text(f"{TOKEN}\n")
    run(photo, address, "--token-file", path)
    run(photo, address, "--token-file", path, variable="another")
    run(photo, address, variable="another\n")
    run(photo, address)
    run(photo, address, variable="")
    assert shown == [f"Bearer {TOKEN}"] * 2 + ["Bearer another"]


def test_a_token_of_the_environment_is_not_sent_in_clear_either(photo: Path) -> None:
    with pytest.raises(UsageError, match=r"would go to example\.org unencrypted"):
        run(photo, "example.org:1", variable=TOKEN)


def test_a_token_file_that_is_none_is_named(photo: Path) -> None:
    empty, nowhere = photo.with_name("empty"), photo.with_name("nowhere")
    empty.write_text(" \n")
    with pytest.raises(UsageError, match=f"token file {empty} is empty"):
        run(photo, "127.0.0.1:1", "--token-file", empty)
    with pytest.raises(UsageError, match=f"token file {nowhere} cannot be read: No such file"):
        run(photo, "127.0.0.1:1", "--token-file", nowhere)
    with pytest.raises(UsageError, match=f"token file {photo} cannot be read: it is not UTF-8 text"):
        run(photo, "127.0.0.1:1", "--token-file", photo)


def test_a_key_without_its_certificate_is_refused(photo: Path) -> None:
    with pytest.raises(UsageError, match=f"client key {photo} was given without its certificate"):
        run(photo, "127.0.0.1:1", "--key", photo)
