import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import UsageError
from serving.allowance import Allowance
from serving.errors import AllowanceError
from serving.token_command import token as token_command
from serving.tokens import Token, Tokens, make_token, read_tokens

HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "tokens.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_lines_are_read_with_comments_and_limits(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "# of the cameras",
        f"camera-1 {HASHES[0]} rate=2.5 concurrent=3  # by the door",
        "",
        f"  operator@example.org   {HASHES[1]} admin",
        f"plain {HASHES[2]}",
    )
    assert read_tokens(path) == (
        Token("camera-1", HASHES[0], rate=2.5, concurrent=3),
        Token("operator@example.org", HASHES[1], admin=True),
        Token("plain", HASHES[2]),
    )


def test_a_file_may_come_from_another_systems_editor(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes(f"\ufeffcamera {HASHES[0]} rate=2\r\noperator {HASHES[1]} admin\r\n".encode())
    assert read_tokens(path) == (Token("camera", HASHES[0], rate=2), Token("operator", HASHES[1], admin=True))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("camera", "a name is followed by its token's SHA-256"),
        (f"camera {HASHES[1][:-1]}", "a name is followed by its token's SHA-256"),
        (f"camera {HASHES[1].upper()}", "a name is followed by its token's SHA-256"),
        (f"../camera {HASHES[1]}", "a token's name is up to 64 letters"),
        (f"camera {HASHES[1]} rate=0", "rate is 0 requests a second; it must be from 0.001"),
        (f"camera {HASHES[1]} rate=fast", "what follows the hash must be rate=N, concurrent=N or admin"),
        (f"camera {HASHES[1]} rate=-1", "what follows the hash must be"),
        (f"camera {HASHES[1]} concurrent=0", "concurrent is 0 calls at a time; it must be at least 1"),
        (f"camera {HASHES[1]} concurrent=1.5", "what follows the hash must be"),
        (f"camera {HASHES[1]} Admin", "what follows the hash must be"),
        (f"first {HASHES[1]}", "an earlier line has the same name or the same token"),
        (f"camera {HASHES[0]}", "an earlier line has the same name or the same token"),
    ],
)
def test_a_wrong_line_is_named_and_not_repeated(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, "# comment", f"first {HASHES[0]}", line)
    with pytest.raises(UsageError) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(f"tokens file {path}, line 3: {problem}")
    assert "camera" not in str(caught.value)
    assert HASHES[1][:20] not in str(caught.value)


def test_a_token_in_the_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    secret, made = make_token("camera")
    for line in (secret, f"camera {secret}", f"{secret} {made.sha256} {secret}"):
        with pytest.raises(UsageError) as caught:
            read_tokens(write(tmp_path, line))
        assert secret not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"tokens file {tmp_path / 'nowhere'} cannot be read: No such file"):
        read_tokens(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary cannot be read: it is not UTF-8 text"):
        read_tokens(tmp_path / "binary")


@given(
    rate=st.none() | st.floats(0.001, 1e6),
    concurrent=st.none() | st.integers(1, 1_000_000),
    admin=st.booleans(),
)
def test_a_line_says_what_its_token_was_made_with(
    tmp_path_factory: pytest.TempPathFactory, rate: float | None, concurrent: int | None, *, admin: bool
) -> None:
    secret, made = make_token("camera", rate=rate, concurrent=concurrent, admin=admin)
    path = write(tmp_path_factory.getbasetemp(), made.line)
    (found,) = read_tokens(path)
    assert (found.sha256, found.concurrent, found.admin) == (made.sha256, concurrent, admin)
    assert found.rate == (None if rate is None else pytest.approx(rate))
    assert secret not in made.line
    known = Tokens(path).find(secret)
    assert known is not None
    assert known[0] == found


def test_tokens_are_random_and_found_by_their_hash_alone(tmp_path: Path) -> None:
    made = [make_token(f"camera-{number}") for number in range(50)]
    assert len({secret for secret, _ in made}) == 50
    tokens = Tokens(write(tmp_path, *(token.line for _, token in made)))
    for secret, token in made:
        found = tokens.find(secret)
        assert found is not None
        assert found[0] == token
        assert tokens.find(token.sha256) is None
        assert tokens.find(secret[:-1]) is None
    assert tokens.find("") is None


def test_what_a_token_has_left_outlives_changes_of_other_lines(tmp_path: Path) -> None:
    secret, made = make_token("camera", rate=0.01)
    path = write(tmp_path, made.line)
    tokens = Tokens(path)
    found = tokens.find(secret)
    assert found is not None
    found[1].take()
    write(tmp_path, made.line, make_token("other")[1].line)
    again = tokens.find(secret)
    assert again is not None
    with pytest.raises(AllowanceError):
        again[1].take()


def test_the_command_prints_a_token_and_its_line(tmp_path: Path) -> None:
    options = ["camera-1", "--rate", "5", "--concurrent", "2", "--admin"]
    result = CliRunner().invoke(token_command, options, catch_exceptions=False)
    first, second = result.stdout.splitlines()
    secret = first.removeprefix("token for the client: ").strip()
    line = second.removeprefix("line for the server's tokens: ")
    assert line.endswith(" rate=5 concurrent=2 admin")
    found = Tokens(write(tmp_path, line)).find(secret)
    assert found is not None
    assert found[0].name == "camera-1"


def test_the_command_appends_to_a_file_and_prints_the_token_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("# no line end")
    secrets = []
    for name in ("camera-1", "camera-2"):
        result = CliRunner().invoke(token_command, [name, "--append", str(path)], catch_exceptions=False)
        (secret,) = result.stdout.split()
        secrets.append(secret)
    found = [Tokens(path).find(secret) for secret in secrets]
    assert [token and token[0].name for token in found] == ["camera-1", "camera-2"]
    arguments = ["camera-1", "--append", str(path)]
    with pytest.raises(UsageError, match=f"{path} has a token 'camera-1' already"):
        CliRunner().invoke(token_command, arguments, catch_exceptions=False, standalone_mode=False)
    with pytest.raises(UsageError, match="a token's name is up to 64 letters"):
        CliRunner().invoke(token_command, ["a b"], catch_exceptions=False, standalone_mode=False)


def test_an_allowance_has_room_for_a_second_of_requests_and_tells_when_there_is_more() -> None:
    allowance = Allowance(rate=5)
    for _ in range(5):
        allowance.take()
    # A slow machine leaves time for some more.
    with pytest.raises(AllowanceError, match="may send 5 requests a second") as caught:  # noqa: PT012
        for _ in range(1000):
            allowance.take()
    assert 0 < caught.value.retry_after_s <= 0.2
    time.sleep(caught.value.retry_after_s)
    allowance.take()


def test_a_slow_allowance_has_room_for_one_request() -> None:
    allowance = Allowance(rate=0.001)
    allowance.take()
    with pytest.raises(AllowanceError) as caught:
        allowance.take()
    assert caught.value.retry_after_s == pytest.approx(1000, abs=60)


def test_an_allowance_without_limits_always_has_room() -> None:
    allowance = Allowance()
    for _ in range(1000):
        allowance.take()
        allowance.call().__enter__()


async def test_streams_are_held_back_together() -> None:
    allowance = Allowance(rate=20)

    async def numbers() -> AsyncIterator[int]:
        for number in range(15):
            yield number

    async def read() -> list[int]:
        return [number async for number in allowance.pace(numbers())]

    started = time.monotonic()
    assert await asyncio.gather(read(), read()) == [list(range(15))] * 2
    assert time.monotonic() - started >= 0.45
