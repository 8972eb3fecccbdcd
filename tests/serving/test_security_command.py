"""`fcnseg serve` and `fcnseg request` in processes of their own: what the options do, and what is told of mistakes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fcnseg import masks
from fcnseg.commands.request import request
from fcnseg.errors import UsageError
from serving.command import serve
from serving.security import Security
from serving.tls import ServerTls
from serving.tokens import Tokens, make_token
from tests.certificates import Authority

RUN = [sys.executable, "-c", "from fcnseg.cli import main; main()"]
QUICK = ("--port", "0", "--device", "cpu", "--threads", "1")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [*RUN, "serve", *arguments, *QUICK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.communicate()


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [*RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_closed_server_answers_who_brings_certificate_and_token(
    tiny_model: Path, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server")
    own, own_key = authority.issue("client")
    secret, made = make_token("camera")
    (tmp_path / "tokens.txt").write_text(made.line)
    (tmp_path / "token").write_text(secret)
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    cv2.imwrite(str(photo), np.full((4, 6, 3), (255, 0, 0), np.uint8))
    closed = f"--tls-cert {certificate} --tls-key {key} --tls-client-ca {authority.path} --tokens {tmp_path}/tokens.txt"
    encrypted = ("--ca", authority.path, "--cert", own, "--key", own_key)
    with serving(str(tiny_model), "--host", "0.0.0.0", *closed.split()) as (process, address):  # noqa: S104
        local = f"localhost:{address.rpartition(':')[2]}"
        arguments = [local, photo, "-o", mask, *encrypted, "--token-file", tmp_path / "token"]
        CliRunner().invoke(request, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False)
        assert masks.read_ids(mask).tolist() == [[2] * 6] * 4
        refused = run("request", local, photo, "-o", mask, *encrypted)
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "UNAUTHENTICATED" in log
    assert secret not in log
    assert "warning" not in log.lower()
    assert refused.returncode == 2
    assert refused.stderr == (
        f"fcnseg: error: server {local}: the request brings no token; send one as 'authorization: Bearer TOKEN' (here"
        " by --token-file FILE, or FCNSEG_TOKEN)\n"
    )


def test_an_open_server_is_warned_of_in_one_line(tiny_model: Path) -> None:
    with serving(str(tiny_model), "--host", "0.0.0.0", "--log-level", "warning") as (process, _):  # noqa: S104
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == (
            "fcnseg: warning: listening on 0.0.0.0 without TLS (--tls-cert, --tls-key): what is sent can be read and"
            " changed on the way, and without tokens (--tokens): whoever reaches the port is answered\n"
        )


def test_what_is_open_is_named_and_nothing_else(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("server")
    (tmp_path / "tokens.txt").write_text(make_token("camera")[1].line)
    tokens = Tokens(tmp_path / "tokens.txt")
    everywhere = "0.0.0.0"  # noqa: S104
    assert Security().exposure("127.0.0.1") is None
    assert Security().exposure("localhost") is None
    assert Security(tls=ServerTls(*files), tokens=tokens).exposure(everywhere) is None
    assert Security(tls=ServerTls(*files, authority.path)).exposure(everywhere) is None
    encrypted, known = Security(tls=ServerTls(*files)).exposure(everywhere), Security(tokens=tokens).exposure("::")
    assert encrypted == "listening on 0.0.0.0 without tokens (--tokens): whoever reaches the port is answered"
    assert known == (
        "listening on :: without TLS (--tls-cert, --tls-key): what is sent can be read and changed on the way"
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--tls-cert {certificate}", "TLS needs a certificate and its key; give --tls-key FILE too"),
        ("--tls-cert {certificate} --tls-key {other}", "key {other} does not belong to certificate {certificate}"),
        ("--tls-cert {nowhere} --tls-key {key}", "certificate file {nowhere} cannot be read: No such file"),
        (
            "--tls-cert {certificate} --tls-key {key} --tls-client-ca {key}",
            "certificate file {key} holds no certificate",
        ),
        ("--tokens {nowhere}", "tokens file {nowhere} cannot be read: No such file"),
        ("--tokens {certificate}", "tokens file {certificate}, line 1: a token's name is"),
        ("--open-admin --no-admin", "--open-admin and --no-admin contradict each other"),
    ],
)
def test_a_mistake_is_told_before_models_are_opened(
    authority: Authority, tmp_path: Path, options: str, problem: str
) -> None:
    certificate, key = authority.issue("server")
    _, other = authority.issue("other")
    places = {"certificate": certificate, "key": key, "other": other, "nowhere": tmp_path / "nowhere"}
    arguments = ["no-model.onnx", *QUICK, *options.format(**places).split()]
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(serve, arguments, catch_exceptions=False, standalone_mode=False)
    assert str(caught.value).startswith(problem.format(**places))
    assert "\n" not in str(caught.value)


def test_a_mistake_is_one_line_and_exit_code_2(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("# comment\nrubbish\n")
    result = run("serve", tiny_model, *QUICK, "--tokens", tmp_path / "tokens.txt")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"fcnseg: error: tokens file {tmp_path / 'tokens.txt'}, line 2: a name is followed by its token's SHA-256 as 64"
        " hexadecimal digits; 'fcnseg token' writes it\n"
    )
