"""Refuses messages, before they are parsed, that would take far more memory as objects than as bytes.

protobuf turns an empty message, two bytes on the wire, into an object of a hundred bytes, and each byte of packed
integers into four or eight. So the fields of a large message are counted first, from its bytes and the contract
(the wire format: https://protobuf.dev/programming-guides/encoding).

The count follows the parser: both stop where the bytes are not a valid message.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from serving.calls import asked_by_probes
from serving.errors import OversizedMessageError
from serving.handlers import HandlerInterceptor, parts_of

if TYPE_CHECKING:
    from serving.handlers import Handler

SMALL_BYTES = 64 << 10
"""A message of at most this size is parsed without a count."""
MOST_FIELDS = 20_000
"""Most fields of a message, including those of nested messages."""
MOST_WIDENED_BYTES = 1 << 20
"""Most bytes of packed integers in a message, except those of uint32."""
MOST_UINT32_BYTES = 12 << 20
"""Most bytes of packed uint32 in a message, the type of typed pixels: 1920 x 1080 of them, whatever their values."""
MOST_BYTES_BESIDE = 4 << 20
"""Most bytes of texts, packed floats and flags, fields unknown to the contract, and images that a later one replaces.

Fields of bytes are images, and are counted where images are admitted.
"""
MOST_PROBE_BYTES = 4 << 10
"""Most bytes of a message to health, which anybody may send, or to reflection: both take only a name."""
_MOST_PACKED_BYTES = {
    FieldDescriptor.TYPE_INT64: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_UINT64: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_SINT64: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_INT32: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_SINT32: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_ENUM: MOST_WIDENED_BYTES,
    FieldDescriptor.TYPE_UINT32: MOST_UINT32_BYTES,
}
_LONGEST_VARINT = 10
_VARINT, _BYTES, _GROUP, _GROUP_END = 0, 2, 3, 4
_FIXED = {1: 8, 5: 4}


@dataclass(frozen=True)
class Kind:
    """What the count needs to know of a kind of message.

    Attributes:
        messages: The fields that hold messages, by number; a map's entries are messages.
        packed: The fields, by number, whose packed numbers take four or eight bytes each once parsed, with the most
            bytes that a message may have of all fields with the same limit.
        image: The fields of bytes that hold one image; if one occurs repeatedly, the parser takes the last.
        images: The repeated fields of bytes, which hold any number of images.
    """

    messages: dict[int, "Kind"] = field(default_factory=dict)
    packed: dict[int, int] = field(default_factory=dict)
    image: set[int] = field(default_factory=set)
    images: set[int] = field(default_factory=set)


_UNKNOWN = Kind()


class _BrokenError(Exception):
    """The bytes are not a valid message."""


class MessageSizeInterceptor(HandlerInterceptor):
    """Checks the requests of every method in the descriptor pool before they are parsed."""

    def wrap(self, handler: "Handler", method: str) -> "Handler":
        """Wrap a handler whose requests are parsed."""
        parse: Callable[[bytes], Any] | None = handler.request_deserializer
        kind = _kind_of_requests(method)
        parts = parts_of(handler)
        if parse is None or kind is None or parts is None:
            return handler
        make, inner = parts
        most = MOST_PROBE_BYTES if asked_by_probes(method.removeprefix("/")) else sys.maxsize

        def check_and_parse(data: bytes) -> Any:
            if len(data) > most:
                raise OversizedMessageError(
                    f"the request has {len(data)} bytes; health and reflection take at most {most}, enough for a name"
                )
            if len(data) > SMALL_BYTES:
                require_few_fields(data, kind)
            return parse(data)

        return make(inner, check_and_parse, handler.response_serializer)


def kind_of(descriptor: Descriptor) -> Kind:
    """Return what the count needs to know of a message of a type."""
    return _kind_of(descriptor, {})


def require_few_fields(data: bytes, kind: Kind) -> None:
    """Refuse a message that would take far more memory as objects than as bytes.

    Args:
        data: The message; where its bytes become invalid, the count ends, and the parser will refuse it.
        kind: The kind of message.

    Raises:
        OversizedMessageError: It has more fields, packed integers, or bytes beside its images than a request needs.
    """
    try:
        _Count(data, kind).run()
    except (IndexError, _BrokenError):  # it ends within a field, or is invalid
        return


class _Count:
    def __init__(self, data: bytes, kind: Kind) -> None:
        self._data = data
        self._at = 0
        self._fields = 0
        self._packed: Counter[int] = Counter()
        self._beside = self._image = 0
        # The message or group that is being read: its kind, its end, and, for a group, its field number.
        self._inner = (kind, len(data), 0)
        self._outer: list[tuple[Kind, int, int]] = []

    def run(self) -> None:
        while self._goes_on():
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise OversizedMessageError(
                    f"the request has more than {MOST_FIELDS} fields, including those of its tensors, names and"
                    " parameters; send pixels and files as bytes, and fewer other fields at a time"
                )
            tag = self._varint()
            number, wire = tag >> 3, tag & 7
            if wire == _BYTES:
                self._bytes(number)
            elif wire == _VARINT:
                self._varint()
            elif wire in _FIXED:
                self._at += _FIXED[wire]
            else:
                self._group(number, wire)

    def _goes_on(self) -> bool:
        while self._at >= self._inner[1]:
            _, end, group = self._inner
            if self._at > end or group:
                raise _BrokenError
            if not self._outer:
                return False
            self._inner = self._outer.pop()
        return True

    def _bytes(self, number: int) -> None:
        size = self._varint()
        kind, end, _ = self._inner
        if size > end - self._at:
            raise _BrokenError
        if number in kind.messages:
            self._outer.append(self._inner)
            self._inner = kind.messages[number], self._at + size, 0
            return
        self._at += size
        if (most := kind.packed.get(number)) is not None:
            self._packed[most] += size
            if self._packed[most] > most:
                raise OversizedMessageError(
                    f"the request has {self._packed[most]} bytes of packed integers, more than the limit of {most} for"
                    " their type; send tensors as raw_input_contents"
                )
        elif number in kind.image:
            self._add_beside(self._image)  # the image that this one replaces, which is still held
            self._image = size
        elif number not in kind.images:
            self._add_beside(size)

    def _add_beside(self, size: int) -> None:
        self._beside += size
        if self._beside > MOST_BYTES_BESIDE:
            raise OversizedMessageError(
                f"the request has more than {MOST_BYTES_BESIDE} bytes beside its image, as names, parameters or fields"
                " that the server does not know; leave them out"
            )

    def _group(self, number: int, wire: int) -> None:
        """Enter or leave a group, a deprecated wire type that none of our messages has."""
        if wire == _GROUP and number:
            self._outer.append(self._inner)
            self._inner = _UNKNOWN, self._inner[1], number
        elif wire == _GROUP_END and number and number == self._inner[2]:
            self._inner = self._outer.pop()
        else:
            raise _BrokenError

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 7 * _LONGEST_VARINT, 7):
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _BrokenError


def _kind_of_requests(method: str) -> Kind | None:
    """Return the kind of a method's requests, for /SERVICE/METHOD; None where the pool does not know it."""
    try:
        found = descriptor_pool.Default().FindMethodByName(method.removeprefix("/").replace("/", "."))
    except KeyError:
        return None
    return kind_of(found.input_type)


def _kind_of(descriptor: Descriptor, known: dict[str, Kind]) -> Kind:
    kind = known.get(descriptor.full_name)
    if kind is None:
        kind = known[descriptor.full_name] = Kind()
        for found in descriptor.fields:
            if found.message_type is not None:
                kind.messages[found.number] = _kind_of(found.message_type, known)
            elif found.type in _MOST_PACKED_BYTES:
                kind.packed[found.number] = _MOST_PACKED_BYTES[found.type]
            elif found.type == FieldDescriptor.TYPE_BYTES:
                (kind.images if found.is_repeated else kind.image).add(found.number)
    return kind
