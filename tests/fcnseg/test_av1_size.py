import base64

import pytest

from fcnseg.av1_size import frame_sizes
from fcnseg.errors import ImageError

# Six frames by SVT-AV1, scaled by chance (resize-mode=2); the sizes are those that FFmpeg's trace_headers tells.
SCALED = base64.b64decode("""
EgAKCgAAAAMt/8+/kAQyERIB/VAD8AKktAAAAAAIACjzEgAyFyiEACSSSQBlDADIAIcU8AAAEAAQAJwQMhooggEEkgAAi3QBFAC7E8AAAAgADACbf5mz
sDIXMQMICSTbAOpoAdABMjGAAAAgADAAlsASABoBuBIAMhcxBgANtgAA/qgB+AFSMYAAACAAMACWwBIAGgGIEgAyEDEKCAAAAKMYAAACAAAAl8A=
""")
SEQUENCE, FRAME, TEMPORAL_DELIMITER = 1, 6, 2


def unit(kind: int, *fields: tuple[int, int], extension: bytes = b"") -> bytes:
    """An open bitstream unit of (value, bits), with its size."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    body = int(bits.ljust(-len(bits) // 8 * -8, "0") or "0", 2).to_bytes(-(-len(bits) // 8), "big")
    return bytes([kind << 3 | 2 | (4 if extension else 0), *extension, len(body)]) + body


def timed_sequence(width: int, height: int) -> bytes:
    """A sequence of two spatial layers with a decoder model, frame ids, order hints, and sizes of 16 bits."""
    points = [
        field
        for layers in (0x301, 0x101)
        for field in ((layers, 12), (8, 5), (0, 1), (1, 1), (0, 10), (0, 10), (0, 1), (1, 1), (9, 4))
    ]
    return unit(
        SEQUENCE,
        *((0, 3), (0, 1), (0, 1)),
        *((1, 1), (1, 32), (25, 32), (1, 1), (0b00101, 5), (1, 1), (9, 5), (1, 32), (11, 5), (4, 5)),
        *((1, 1), (1, 5), *points),
        *((15, 4), (15, 4), (width - 1, 16), (height - 1, 16)),
        *((1, 1), (3, 4), (2, 3)),
        *((0, 3), (0, 4), (1, 1), (0, 2), (1, 1), (1, 1), (6, 3)),
    )


def timed_key_frame(width: int, height: int) -> bytes:
    """A frame of the second spatial layer, which only the first operating point has, with a size of its own."""
    return unit(
        FRAME,
        *((0, 1), (0, 2), (1, 1), (0, 1), (1, 1), (0, 1), (5, 8), (1, 1), (0, 7), (1, 1), (0, 12)),
        *((width - 1, 16), (height - 1, 16), (0, 8)),
        extension=bytes([1 << 3]),
    )


def sizes(data: bytes) -> list[tuple[int, int]]:
    return [size for size in frame_sizes(memoryview(data)) if size != (0, 0)]


def test_sizes_are_those_of_the_sequence_and_of_each_frame_that_has_its_own() -> None:
    assert sizes(SCALED) == [(64, 96), (43, 64), (34, 51), (47, 70), (39, 59), (43, 64)]


def test_a_frame_may_be_larger_than_its_sequence_allows() -> None:
    assert sizes(timed_sequence(16, 9) + timed_key_frame(12000, 11000)) == [(9, 16), (11000, 12000)]


def test_a_unit_without_a_size_ends_with_the_data() -> None:
    frame = timed_key_frame(300, 200)
    endless = bytes([frame[0] & ~2]) + frame[1:2] + frame[3:]
    assert sizes(timed_sequence(16, 9) + endless) == [(9, 16), (200, 300)]
    assert sizes(unit(TEMPORAL_DELIMITER)) == []


@pytest.mark.parametrize("length", range(1, len(SCALED) - 20))
def test_data_cut_anywhere_give_sizes_or_one_line(length: int) -> None:
    try:
        assert set(sizes(SCALED[:length])) <= set(sizes(SCALED))
    except ImageError as error:
        assert "AV1 headers end too early" in str(error)  # noqa: PT017  # the error is only one of two good ends


def test_a_frame_without_a_sequence_is_refused() -> None:
    with pytest.raises(ImageError, match="no sequence header"):
        sizes(timed_key_frame(16, 9))
