import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.protobuf_reader import BrokenError, Message, Reader

WORDS = Message("list", {}, {1: ("words", "bytes"), 2: ("numbers", "number")})


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def encoded(words: list[tuple[int, int]]) -> bytes:
    """Return a message of words, of so many letters each, with a number behind each."""
    parts = io.BytesIO()
    for length, number in words:
        parts.write(b"\x0a" + varint(length) + b"a" * length + b"\x10" + varint(number))
    return parts.getvalue()


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 2**64 - 1)), max_size=8))
def test_what_is_read_is_what_was_written_wherever_it_lies(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "words"
    path.write_bytes(encoded(words))
    with path.open("rb") as file:
        reader = Reader(file)
        part = reader.message(WORDS, reader.whole)
        assert [len(word) for word in reader.texts(part, "words")] == [length for length, _ in words]
    assert part.numbers.get("numbers", []) == [number for _, number in words]


@pytest.mark.parametrize("left", [0, 1, 50_000])
def test_a_file_that_becomes_shorter_while_it_is_read_ends_there(tmp_path: Path, left: int) -> None:
    path = tmp_path / "words"
    path.write_bytes(encoded([(40_000, 300)] * 4))
    with path.open("rb") as file:
        reader = Reader(file)
        os.truncate(path, left)
        with pytest.raises(BrokenError, match="it ends within a number"):
            reader.message(WORDS, reader.whole)
