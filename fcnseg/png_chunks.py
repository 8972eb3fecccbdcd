"""A PNG without the chunks that nothing here asks for, where there are many of them.

Pillow reads every chunk, in Python, and inflates every colour profile: a file of nothing else would keep a thread for
minutes. The PNG specification's section 5 has the layout of chunks.
"""

from fcnseg.errors import ImageError

MOST_CHUNKS = 100_000
"""Of a file: at libpng's 8 KiB of pixels a chunk, 800 MB."""
_SIGNATURE_BYTES, _FRAME_BYTES = 8, 12  # a chunk's length, kind and checksum
_MOST_UNUSED = 16
_ANCILLARY = 0x20  # the bit of a kind's first letter
_USED = {b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
"""Ancillary chunks that change an image: its transparency, and its orientation, which may stand in texts too."""


def without_unused_chunks(data: bytes) -> bytes:
    """Return a PNG as it is, or without the chunks that are not used where these are many.

    Raises:
        ImageError: It has more chunks than a file may.
    """
    kept, unused = [], 0
    start = at = _SIGNATURE_BYTES
    for _ in range(MOST_CHUNKS):
        if at + _FRAME_BYTES > len(data):
            break
        kind = data[at + 4 : at + 8]
        end = at + _FRAME_BYTES + int.from_bytes(data[at : at + 4], "big")
        if kind[0] & _ANCILLARY and kind not in _USED:
            unused += 1
            kept.append(data[start:at])
            start = end
        at = end
    else:
        raise ImageError(f"the PNG image has more than {MOST_CHUNKS} chunks; store it again")
    return data if unused <= _MOST_UNUSED else data[:_SIGNATURE_BYTES] + b"".join(kept) + data[start:]
