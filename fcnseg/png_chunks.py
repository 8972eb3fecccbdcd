"""Remove unused chunks from a PNG that has many of them.

Pillow reads every chunk in Python, and decompresses every colour profile: a file of nothing else would occupy a thread
for minutes. Section 5 of the PNG specification defines the layout of chunks.
"""

from fcnseg.errors import ImageError

MOST_CHUNKS = 100_000
"""Most chunks of a file: with libpng's 8 KiB of pixel data per chunk, 800 MB."""
_SIGNATURE_BYTES, _FRAME_BYTES = 8, 12  # a chunk's length, kind and checksum
_MOST_UNUSED = 16
_ANCILLARY = 0x20  # the bit of a kind's first letter
_USED = {b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
"""Ancillary chunks that affect decoding: transparency, and orientation, which may also be in text chunks."""


def without_unused_chunks(data: bytes) -> bytes:
    """Return a PNG without its unused chunks if it has many of them, else unchanged.

    Raises:
        ImageError: The file has more than `MOST_CHUNKS` chunks.
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
