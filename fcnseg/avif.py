"""Find the size of an AVIF file's AV1 data before they are decoded.

The size that the file declares (`ispe`) may differ from that of its AV1 data, which decoders then scale after decoding.
So the AV1 data of each coded item and of each track's first frame are located, by ISO/IEC 14496-12 (boxes, `iloc`,
`idat`, sample tables) and the AV1 Image File Format (https://aomediacodec.github.io/av1-avif/), and their headers are
read. All of them count, whichever image they belong to; the header's copy in `av1C` is ignored, as by decoders.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fcnseg.av1_size import frame_sizes
from fcnseg.errors import ImageError

_AV1 = b"av01"
_MOST_PARTS = 1 << 16
"""Most boxes, items, extents and AV1 units in a file; a grid of 64 x 64 tiles with alpha has about 50 000."""
_MOST_SHARING = 4
"""How often all bytes of a file may be read on average; an item and a track may share a frame."""
_BEHIND_VERSION = 4


def coded_size(data: bytes) -> tuple[int, int]:
    """Return the largest size of the frames that are decoded for a file's still image or its first frame.

    Args:
        data: The file's bytes.

    Returns:
        The most rows, and the most columns, of any frame.

    Raises:
        ImageError: The boxes or headers are damaged, cut short or too many, or there are no AV1 data.
    """
    parts = _Parts()
    height = width = read = 0
    for payload in _payloads(memoryview(data), parts):
        read += len(payload)
        if read > _MOST_SHARING * len(data):
            raise _damaged("too many of its items lie in the same place")
        for frame_height, frame_width in frame_sizes(payload):
            parts.count()
            height, width = max(height, frame_height), max(width, frame_width)
    if not height:
        raise _damaged("there are no AV1 data")
    return height, width


class _Parts:
    """Counts the parts of a file and limits them, so that a small file cannot take long."""

    def __init__(self) -> None:
        self._left = _MOST_PARTS

    def count(self, parts: int = 1) -> None:
        """Count further parts."""
        self._left -= parts
        if self._left < 0:
            raise ImageError(f"the AVIF image is made of more than {_MOST_PARTS} parts; store it again")


def _payloads(file: memoryview, parts: _Parts) -> Iterator[memoryview]:
    """Find the open bitstream units of each item, and of each track's first sample."""
    for kind, body in _boxes(file, parts, cut=True):
        if kind == b"meta":
            yield from _item_payloads(file, body[_BEHIND_VERSION:], parts)
        elif kind == b"moov":
            for track in _children(body, [b"trak"], parts):
                yield from _first_sample(file, track, parts)


@dataclass
class _Fields:
    """Big-endian numbers of a box, one after the other."""

    data: memoryview
    at: int = 0

    def take(self, size: int) -> int:
        end = self.at + size
        if end > len(self.data):
            raise _damaged("a box ends too early")
        value = int.from_bytes(self.data[self.at : end], "big")
        self.at = end
        return value


@dataclass
class _Item:
    in_idat: bool
    extents: list[tuple[int, int]] = field(default_factory=list)  # offset, length; 0: up to the end


def _boxes(data: memoryview, parts: _Parts, *, cut: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """Yield boxes; with `cut`, the last one may be shorter than it declares, or not be a box."""
    at = 0
    while len(data) - at >= 8:
        parts.count()
        size, kind, header = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8]), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if not header <= size <= len(data) - at and not cut:
            raise _damaged(f"a box has {size} bytes of {len(data) - at}")
        if size < header:
            return
        yield kind, data[at + header : at + size]
        at += size


def _children(data: memoryview, path: list[bytes], parts: _Parts) -> Iterator[memoryview]:
    """Yield the boxes at a path of names."""
    for kind, body in _boxes(data, parts):
        if kind == path[0]:
            yield from _children(body, path[1:], parts) if path[1:] else [body]


def _item_payloads(file: memoryview, meta: memoryview, parts: _Parts) -> Iterator[memoryview]:
    coded: set[int] = set()
    places: list[tuple[int, _Item]] = []
    idat = file[:0]
    for kind, body in _boxes(meta, parts):
        if kind == b"iinf":
            coded |= _coded_items(body, parts)
        elif kind == b"iloc":
            places += _locations(body, parts)
        elif kind == b"idat":
            idat = body
    copied = 0
    for number, item in places:
        if number not in coded or not item.extents:
            continue
        pieces = [_piece(idat if item.in_idat else file, *extent) for extent in item.extents]
        if len(pieces) == 1:
            yield pieces[0]
            continue
        copied += sum(map(len, pieces))
        if copied > len(file):
            raise _damaged("pieces of its items overlap")
        yield memoryview(b"".join(pieces))


def _coded_items(iinf: memoryview, parts: _Parts) -> set[int]:
    """Return the numbers of the items that are AV1."""
    if not iinf:
        raise _damaged("a box ends too early")
    coded = set()
    for kind, body in _boxes(iinf[_BEHIND_VERSION + (2 if iinf[0] == 0 else 4) :], parts):
        if kind == b"infe":
            fields = _Fields(body)
            number_size = 4 if fields.take(1) >= 3 else 2
            fields.take(3)  # flags
            number = fields.take(number_size)
            fields.take(2)  # item_protection_index
            if fields.take(4) == int.from_bytes(_AV1, "big"):
                coded.add(number)
    return coded


def _locations(iloc: memoryview, parts: _Parts) -> Iterator[tuple[int, _Item]]:
    fields = _Fields(iloc)
    version = fields.take(1)
    fields.take(3)  # flags
    sizes = fields.take(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    if version == 0:
        index_size = 0
    number_size = 4 if version >= 2 else 2
    for _ in range(fields.take(number_size)):
        parts.count()
        number = fields.take(number_size)
        method = fields.take(2) & 15 if version else 0
        if method > 1:
            raise _damaged(f"an item is stored by method {method}, and AVIF has 0 and 1")
        fields.take(2)  # data_reference_index
        base = fields.take(base_size)
        item = _Item(in_idat=method == 1)
        count = fields.take(2)
        parts.count(count)
        for _ in range(count):
            fields.take(index_size)
            offset = base + fields.take(offset_size)
            item.extents.append((offset, fields.take(length_size)))
        yield number, item


def _first_sample(file: memoryview, track: memoryview, parts: _Parts) -> Iterator[memoryview]:
    """Find the first sample of a track: Pillow and OpenCV decode no other for the first frame."""
    for table in _children(track, [b"mdia", b"minf", b"stbl"], parts):
        kinds: set[bytes] = set()
        offset = size = None
        for kind, body in _boxes(table, parts):
            fields = _Fields(body, _BEHIND_VERSION)
            if kind == b"stsd":
                kinds |= {name for name, _ in _boxes(body[_BEHIND_VERSION + 4 :], parts)}
            elif kind in {b"stco", b"co64"} and fields.take(4):
                offset = fields.take(8 if kind == b"co64" else 4)
            elif kind == b"stsz":
                size = fields.take(4) or (fields.take(4) and fields.take(4))
        if _AV1 in kinds and offset is not None and size:
            yield _piece(file, offset, size)


def _piece(source: memoryview, offset: int, length: int) -> memoryview:
    length = length or len(source) - offset
    if length <= 0 or offset + length > len(source):
        raise _damaged(f"{length} bytes at {offset} are beyond its end")
    return source[offset : offset + length]


def _damaged(reason: str) -> ImageError:
    return ImageError(f"the AVIF image is damaged or cut short ({reason}); store or send it again")
