"""Check how many numbers the entries of a TIFF's directory have, before Pillow makes an object of each.

https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, section 2; BigTIFF has wider fields.
"""

import struct

MOST_NUMBERS = 1 << 20
"""Most numbers of an entry: there is one per strip or tile, and the largest accepted image has fewer of them."""
_MOST_ENTRIES = 65_535  # of a TIFF directory; the header's reader refuses a BigTIFF with more
_BYTES = {1, 2, 6, 7}
"""Types whose values Pillow keeps as bytes."""


def has_huge_entries(data: bytes) -> bool:
    """Tell whether an entry of a TIFF's first directory has more than `MOST_NUMBERS` numbers."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in {b"+\0", b"\0+"}
    offset, count, entry = ("Q", "Q", "HHQQ") if is_big else ("I", "H", "HHII")
    try:
        (at,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + count, data, at)
        first, size = at + struct.calcsize(order + count), struct.calcsize(order + entry)
        end = first + min(entries, _MOST_ENTRIES) * size
        for at in range(first, min(end, len(data) - size + 1), size):
            _, kind, numbers, _ = struct.unpack_from(order + entry, data, at)
            if kind not in _BYTES and numbers > MOST_NUMBERS:
                return True
    except struct.error:
        pass  # cut short; the header's reader reports this
    return False
