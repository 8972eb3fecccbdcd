"""Files of tokens, ids of requests and other words that come with a call."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import UsageError
from serving.calls import REQUEST_ID_KEY, read_request_id
from serving.tokens import make_token, read_tokens
from tests.fuzz.law import require_line
from tests.fuzz.mutations import examples, mutated

SECRET = "fcnseg_" + "s3cret" * 7
LINES = [
    f"camera-1 {hashlib.sha256(SECRET.encode()).hexdigest()} rate=5 concurrent=2\n".encode(),
    f"# a comment\n\noperator  {hashlib.sha256(b'other').hexdigest()} admin # and another\n".encode(),
    f"mistake {SECRET} rate=0.001\n".encode(),
    f"{SECRET}\n".encode(),
    "na\u00efve \u2028 \x0b \x00 rate=1e9 concurrent=\u0663\r".encode(),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


@examples(100)
@given(data=mutated([*LINES, b"".join(LINES[:2])]))
def test_a_changed_file_is_tokens_or_an_error_that_tells_nothing_of_it(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        tokens = read_tokens(path)
    except UsageError as error:
        require_line(error, never="s3cret")
        return
    for token in tokens:
        path.write_text(token.line)
        (again,) = read_tokens(path)
        assert (again.name, again.sha256, again.concurrent, again.admin) == (
            token.name,
            token.sha256,
            token.concurrent,
            token.admin,
        )
        assert re.fullmatch(r"[0-9a-f]{64}", token.sha256)


@examples(60)
@given(st.text(max_size=80), st.none() | st.floats(), st.none() | st.integers())
def test_a_token_is_made_or_refused(name: str, rate: float | None, concurrent: int | None) -> None:
    try:
        secret, token = make_token(name, rate=rate, concurrent=concurrent)
    except UsageError as error:
        require_line(error)
    else:
        assert secret not in token.line


@examples(100)
@given(st.lists(st.tuples(st.sampled_from([REQUEST_ID_KEY, "traceparent"]), st.text(max_size=70) | st.binary())))
def test_an_id_is_one_word_whatever_the_client_sends(metadata: list[tuple[str, str | bytes]]) -> None:
    assert re.fullmatch(r"[!-~]{1,64}", read_request_id(metadata))
