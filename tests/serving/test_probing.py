"""Asking a server of this machine over HTTP."""

import socket
import threading
from pathlib import Path

import pytest

from serving.probing import read
from serving.server import ServerConfig
from tests.running_server import running_server


def test_what_a_server_answers_is_read_and_its_refusal_raised(tiny_model: Path) -> None:
    with running_server(tiny_model, ServerConfig(http_port=0)) as server:
        assert server.http_address is not None
        assert read(server.http_address, "/readyz") == "ready\n"
        with pytest.raises(OSError, match="answers /nothing with 404"):
            read(server.http_address, "/nothing")


@pytest.mark.parametrize("answer", [b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nfcnseg_re", b"gibberish\r\n", b""])
def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        answering = threading.Thread(target=answer_one)
        answering.start()
        with pytest.raises(OSError):
            read(f"127.0.0.1:{listener.getsockname()[1]}", "/metrics")
        answering.join()
