from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fcnseg import AsyncClient, Client, ClientTls
from fcnseg.errors import ServerUnavailableError, UsageError
from serving.security import Security
from serving.server import ServerConfig
from serving.tls import ServerTls, open_tls
from tests.certificates import Authority
from tests.running_server import RunningServer, running_server

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


def encrypted(certificate: Path, key: Path, client_authorities: Path | None = None) -> ServerConfig:
    return ServerConfig(security=Security(tls=ServerTls(certificate, key, client_authorities)))


def ask(server: RunningServer, *, tls: bool | ClientTls) -> list[list[int]]:
    with Client(server.address, tls=tls, retries=0, timeout_s=10) as client:
        ids: list[list[int]] = client.segment(RED).class_map.tolist()
        return ids


async def test_both_clients_calls_and_streams_go_through_tls(tiny_model: Path, authority: Authority) -> None:
    tls = ClientTls(authority.path)
    with running_server(tiny_model, encrypted(*authority.issue("server"))) as server:
        with Client(server.address, tls=tls) as client:
            assert client.segment(RED).class_map.tolist() == [[0] * 6] * 4
            assert [item.error for item in client.segment_stream([RED] * 3)] == [None] * 3
            assert client.get_model().name == "tiny"
        async with AsyncClient(server.address, tls=ClientTls(str(authority.path))) as other:
            assert (await other.segment(RED)).class_map.tolist() == [[0] * 6] * 4
            assert [item.error async for item in other.segment_stream([RED] * 3)] == [None] * 3


def test_health_is_asked_over_tls_too(tiny_model: Path, authority: Authority) -> None:
    trusted = grpc.ssl_channel_credentials(authority.path.read_bytes())
    with (
        running_server(tiny_model, encrypted(*authority.issue("server"))) as server,
        grpc.secure_channel(server.address, trusted) as channel,
    ):
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_server_of_another_authority_is_not_trusted(
    tiny_model: Path, authority: Authority, stranger: Authority
) -> None:
    with running_server(tiny_model, encrypted(*authority.issue("server"))) as server:
        for tls in (ClientTls(stranger.path), True):
            with pytest.raises(
                ServerUnavailableError, match="client and server do not agree on TLS: check the authorities"
            ):
                ask(server, tls=tls)


def test_a_client_without_tls_is_told_to_use_it(tiny_model: Path, authority: Authority) -> None:
    with (
        running_server(tiny_model, encrypted(*authority.issue("server"))) as server,
        pytest.raises(ServerUnavailableError, match="or use TLS"),
    ):
        ask(server, tls=False)


def test_a_client_with_tls_is_told_that_the_server_has_none(tiny_model: Path, authority: Authority) -> None:
    with (
        running_server(tiny_model) as server,
        pytest.raises(ServerUnavailableError, match="leave TLS out where it has none"),
    ):
        ask(server, tls=ClientTls(authority.path))


def test_only_clients_with_a_certificate_of_the_authority_are_taken(
    tiny_model: Path, authority: Authority, stranger: Authority
) -> None:
    ours, theirs = authority.issue("client"), stranger.issue("stranger")
    with running_server(tiny_model, encrypted(*authority.issue("server"), authority.path)) as server:
        assert ask(server, tls=ClientTls(authority.path, *ours)) == [[0] * 6] * 4
        for tls in (ClientTls(authority.path), ClientTls(authority.path, *theirs)):
            with pytest.raises(ServerUnavailableError, match="with a certificate of your own"):
                ask(server, tls=tls)


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    tiny_model: Path, authority: Authority, stranger: Authority
) -> None:
    certificate, key = authority.issue("server")
    with (
        running_server(tiny_model, encrypted(certificate, key)) as server,
        Client(server.address, tls=ClientTls(authority.path), retries=0) as connected,
    ):
        connected.segment(RED)
        stranger.issue("server")
        assert ask(server, tls=ClientTls(stranger.path)) == [[0] * 6] * 4
        with pytest.raises(ServerUnavailableError, match="do not agree on TLS"):
            ask(server, tls=ClientTls(authority.path))
        connected.segment(RED)


def test_a_broken_new_certificate_is_logged_once_and_the_old_one_stays(
    tiny_model: Path, authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("server")
    other, _ = stranger.issue("other")
    with running_server(tiny_model, encrypted(certificate, key)) as server:
        for content, problem in (
            (b"rubbish", f"certificate file {certificate} holds no certificate"),
            (other.read_bytes(), f"key {key} does not belong to certificate {certificate}"),
        ):
            caplog.clear()
            certificate.write_bytes(content)
            for _ in range(2):
                assert ask(server, tls=ClientTls(authority.path)) == [[0] * 6] * 4
            (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
            assert record.getMessage().startswith(f"the files read before stay in use: {problem}")
            assert "\n" not in record.getMessage()
        certificate.unlink()
        assert ask(server, tls=ClientTls(authority.path)) == [[0] * 6] * 4
        authority.issue("server")
        assert ask(server, tls=ClientTls(authority.path)) == [[0] * 6] * 4


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((True, False, False), "--tls-key FILE"),
        ((False, True, True), "--tls-cert FILE"),
        ((False, False, True), "--tls-cert FILE and --tls-key FILE"),
    ],
)
def test_files_that_are_missing_beside_others_are_named(given: tuple[bool, ...], missing: str) -> None:
    paths = [Path("file.pem") if is_given else None for is_given in given]
    with pytest.raises(UsageError, match=f"; give {missing} too"):
        open_tls(*paths)


def test_without_files_there_is_no_tls() -> None:
    assert open_tls(None, None, None) is None
