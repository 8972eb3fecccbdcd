"""Reads protobuf messages by a grammar: lengths and numbers are read, all other bytes stay in the file.

The format: https://protobuf.dev/programming-guides/encoding. protobuf's own parser would hold a model's weights twice,
and would turn every two bytes of a malicious file into an object of a hundred bytes.

The file is read, not memory-mapped: if a mapped file is truncated meanwhile, access to the lost pages ends the process.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, TypeAlias

Kind: TypeAlias = Literal["number", "bytes", "text"] | "Message"
"""What a field holds: a number, bytes that are not read, UTF-8 text, or a message."""
MOST_FIELDS = 150_000
"""Most fields of a file in all; that of a ResNet-50 has four thousand."""
_LONGEST_VARINT = 10
_WINDOW_BYTES = 16 << 10
_DEEPEST = 32  # nesting of messages; a model's graph in a branch of a graph is at depth ten


class BrokenError(Exception):
    """The bytes are not valid messages."""


class UnfitError(Exception):
    """A message holds something that the grammar does not allow; the error's text names it."""


@dataclass(frozen=True)
class Message:
    """What a kind of message may contain.

    Attributes:
        name: Its name, for messages to people.
        once: Fields that may occur once, by number, with their name and content.
        repeated: Fields that may occur many times.
        refused: Fields that must not occur, by number, with a description of what they hold.
    """

    name: str
    once: Mapping[int, tuple[str, Kind]] = field(default_factory=dict)
    repeated: Mapping[int, tuple[str, Kind]] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """The position of a field's bytes in the file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Part:
    """A message that was read: its fields by name, in the order of the file.

    Attributes:
        numbers: Fields that are numbers; a float is read as 0.
        spans: Fields that are bytes or text.
        parts: Fields that are messages.
    """

    numbers: dict[str, list[int]] = field(default_factory=dict)
    spans: dict[str, list[Span]] = field(default_factory=dict)
    parts: dict[str, list["Part"]] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """Return the number in a field that may occur once; 0 if it does not occur."""
        return self.numbers.get(name, [0])[-1]

    def all(self, name: str) -> list["Part"]:
        """Return the messages in a field."""
        return self.parts.get(name, [])


class Reader:
    """Reads messages of one file, up to `MOST_FIELDS`.

    Args:
        file: The file.

    Attributes:
        whole: The span of all its bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.whole = Span(0, os.fstat(file.fileno()).st_size)
        self._window = b""  # a buffered part of the file, and its position
        self._begin = 0
        self._left = MOST_FIELDS
        self._depth = 0

    def message(self, kind: Message, span: Span) -> Part:
        """Read a message.

        Raises:
            BrokenError: It ends too early, or is not a valid message.
            UnfitError: It holds something that the grammar does not allow, or the file has too many fields.
        """
        if self._depth == _DEEPEST:
            raise UnfitError(f"messages more than {_DEEPEST} deep in each other")
        self._depth += 1
        try:
            return self._message(kind, span)
        finally:
            self._depth -= 1

    def _message(self, kind: Message, span: Span) -> Part:
        part = Part()
        seen: set[int] = set()
        for number, value in self._fields(kind, span):
            if number in kind.refused:
                raise UnfitError(kind.refused[number])
            name, expected = kind.once.get(number) or kind.repeated.get(number) or ("", "number")
            if not name:
                raise BrokenError(f"its {kind.name} has a field {number}, which ONNX does not know")
            if number in kind.once and number in seen:
                raise UnfitError(f"a {kind.name} that gives its {name} twice")
            seen.add(number)
            if expected == "text" and isinstance(value, Span) and not self._is_text(value):
                raise BrokenError(f"its {kind.name} has no UTF-8 text for its {name}")
            self._take(part, name, expected, value)
        return part

    def _take(self, part: Part, name: str, expected: Kind, value: int | Span) -> None:
        if isinstance(expected, Message):
            if isinstance(value, int):
                raise BrokenError(f"it has a number in the place of a {expected.name}")
            part.parts.setdefault(name, []).append(self.message(expected, value))
        elif expected == "number" and isinstance(value, Span):  # a packed repeated field
            part.numbers.setdefault(name, []).extend(self._packed(value))
        elif isinstance(value, int):
            part.numbers.setdefault(name, []).append(value)
        else:
            part.spans.setdefault(name, []).append(value)

    def _fields(self, kind: Message, span: Span) -> Iterator[tuple[int, int | Span]]:
        at = span.start
        while at < span.end:
            self._count()
            tag, at = self._varint(at, span.end)
            number, wire = tag >> 3, tag & 7
            value: int | Span
            if wire == 0:
                value, at = self._varint(at, span.end)
            elif wire in {1, 2, 5}:
                length = {1: 8, 5: 4}.get(wire, 0)
                if wire == 2:
                    length, at = self._varint(at, span.end)
                if length > span.end - at:
                    raise BrokenError(f"it ends within its {kind.name}")
                value, at = (0 if wire != 2 else Span(at, at + length)), at + length
            else:
                raise BrokenError(f"its {kind.name} has a field of an unknown wire type")
            yield number, value

    def _packed(self, span: Span) -> Iterator[int]:
        at = span.start
        while at < span.end:
            self._count()
            value, at = self._varint(at, span.end)
            yield value

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnfitError(f"more than {MOST_FIELDS} fields")

    def text(self, part: Part, name: str) -> str:
        """Return the text in a field that may occur once; empty if it does not occur."""
        spans = part.spans.get(name, [])
        return self._text(spans[-1]) if spans else ""

    def texts(self, part: Part, name: str) -> list[str]:
        """Return the texts in a field."""
        return [self._text(span) for span in part.spans.get(name, [])]

    def _text(self, span: Span) -> str:
        return self._bytes(span).decode(errors="replace")

    def _is_text(self, span: Span) -> bool:
        try:
            self._bytes(span).decode()
        except UnicodeDecodeError:
            return False
        return True

    def _bytes(self, span: Span) -> bytes:
        offset = self._reach(span.start, span.size)
        return self._window[offset : offset + span.size]

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        longest = min(_LONGEST_VARINT, end - at)
        offset = self._reach(at, longest)
        for byte in self._window[offset : offset + longest]:
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        whole = shift == 7 * _LONGEST_VARINT and at < end
        raise BrokenError("a number in it is too long" if whole else "it ends within a number")

    def _reach(self, start: int, size: int) -> int:
        """Make the window hold this many bytes, or those up to the end, and return their position in it."""
        offset = start - self._begin
        if not 0 <= offset <= len(self._window) - size:
            self._file.seek(start)
            self._window = self._file.read(max(size, _WINDOW_BYTES))
            self._begin, offset = start, 0
        return offset
