"""Read the frame sizes of AV1 data from their headers alone.

Follows the AV1 Bitstream & Decoding Process Specification (https://aomediacodec.github.io/av1-spec/): sections 5.3 to
5.5 for sequence headers, and 5.9 for frame headers, which may override the size. A frame should not be larger than the
sequence's size, but decoders do not check that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fcnseg.errors import ImageError

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME, _REDUNDANT_FRAME_HEADER = 1, 3, 6, 7
_KEY_FRAME, _INTRA_ONLY_FRAME, _SWITCH_FRAME = 0, 2, 3
_ALL_FRAMES = 0xFF
_REFERENCES = 7
_BUFFERED_FRAMES = 8
_SELECT = 2  # SELECT_SCREEN_CONTENT_TOOLS and SELECT_INTEGER_MV: each frame header has its own value
_HEAD_BYTES = 512
"""More bytes than a sequence header with 32 operating points has, or a frame header up to its size fields."""


def frame_sizes(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the sizes in the headers of the open bitstream units of an AV1 image or sample.

    Args:
        data: The units, one after the other.

    Yields:
        (height, width) for each unit: the size of the frame that it starts, or the sequence's largest size; (0, 0) for
        other units.

    Raises:
        ImageError: The units are damaged or cut short, or a frame has no sequence header before it.
    """
    sequence: _Sequence | None = None
    while data:
        kind, layer, body, data = _next_unit(data)
        if kind == _SEQUENCE_HEADER:
            sequence = _read_sequence(_Bits(body))
            yield sequence.height, sequence.width
        elif kind in {_FRAME_HEADER, _FRAME, _REDUNDANT_FRAME_HEADER}:
            if sequence is None:
                raise ImageError(
                    "the AVIF image is damaged (an AV1 frame has no sequence header); store or send it again"
                )
            yield _read_frame_size(_Bits(body), sequence, layer)
        else:
            yield 0, 0


class _Bits:
    """The first bytes of a unit, read bit by bit."""

    def __init__(self, data: memoryview) -> None:
        head = bytes(data[:_HEAD_BYTES])
        self._value = int.from_bytes(head, "big")
        self._left = 8 * len(head)

    def take(self, count: int) -> int:
        """Return the next bits as an unsigned number."""
        self._left -= count
        if self._left < 0:
            raise _cut_short()
        return self._value >> self._left & (1 << count) - 1

    def flag(self) -> bool:
        """Return the next bit."""
        return self.take(1) == 1

    def skip_uvlc(self) -> None:
        """Skip a number of variable length (section 4.10.3)."""
        zeros = 0
        while not self.flag():
            zeros += 1
        self.take(zeros)


@dataclass(frozen=True)
class _OperatingPoint:
    layers: int
    """Bit i: has temporal layer i; bit 8 + i: has spatial layer i; 0: has all."""
    has_decoder_model: bool

    def has(self, layer: tuple[int, int]) -> bool:
        temporal, spatial = layer
        return not self.layers or bool(self.layers >> temporal & self.layers >> (8 + spatial) & 1)


@dataclass(frozen=True)
class _Timing:
    """Numbers of bits that a decoder model adds to frame headers; 0 if it adds none."""

    presentation_bits: int = 0
    removal_bits: int = 0
    delay_bits: int = 0


@dataclass(frozen=True)
class _Sequence:
    """The fields of a sequence header that determine a frame's size, or the position of its size fields."""

    height: int
    width: int
    size_bits: tuple[int, int] = (0, 0)  # of the height, of the width
    reduced: bool = True
    timing: _Timing = _Timing()
    operating_points: tuple[_OperatingPoint, ...] = ()
    frame_id_bits: int = 0
    frame_id_delta_bits: int = 0
    order_hint_bits: int = 0
    screen_content_tools: int = 0
    integer_motion: int = 0


def _next_unit(data: memoryview) -> tuple[int, tuple[int, int], memoryview, memoryview]:
    """Return a unit's kind, its (temporal, spatial) layer, its body, and the remaining data (sections 5.3.1, 5.3.2)."""
    header = data[0]
    layer, start = (0, 0), 1
    if header & 4:
        if len(data) < 2:
            raise _cut_short()
        layer, start = (data[1] >> 5, data[1] >> 3 & 3), 2
    size = len(data) - start
    if header & 2:
        size, start = _leb128(data, start)
    if size > len(data) - start:
        raise _cut_short()
    return header >> 3 & 15, layer, data[start : start + size], data[start + size :]


def _leb128(data: memoryview, start: int) -> tuple[int, int]:
    """Return a little-endian number of 7 bits per byte, and the position of its end (section 4.10.5)."""
    value = 0
    for i, byte in enumerate(data[start : start + 8]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, start + i + 1
    raise _cut_short()


def _read_sequence(bits: _Bits) -> _Sequence:
    bits.take(3 + 1)  # seq_profile, still_picture
    reduced = bits.flag()
    timing, points = _Timing(), tuple[_OperatingPoint, ...]()
    if reduced:
        bits.take(5)  # seq_level_idx
    else:
        timing = _read_timing(bits)
        points = _read_operating_points(bits, timing)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    if reduced:
        return _Sequence(height, width)
    id_bits = delta_bits = 0
    if bits.flag():  # frame_id_numbers_present_flag
        delta_bits = bits.take(4) + 2
        id_bits = bits.take(3) + delta_bits + 1
    bits.take(3 + 4)  # superblocks and intra tools; four inter tools
    has_order_hints = bits.flag()
    if has_order_hints:
        bits.take(2)  # enable_jnt_comp, enable_ref_frame_mvs
    screen_content_tools = _SELECT if bits.flag() else bits.take(1)
    integer_motion = _SELECT
    if screen_content_tools and not bits.flag():
        integer_motion = bits.take(1)
    return _Sequence(
        height,
        width,
        size_bits=(height_bits, width_bits),
        reduced=False,
        timing=timing,
        operating_points=points,
        frame_id_bits=id_bits,
        frame_id_delta_bits=delta_bits,
        order_hint_bits=bits.take(3) + 1 if has_order_hints else 0,
        screen_content_tools=screen_content_tools,
        integer_motion=integer_motion,
    )


def _read_timing(bits: _Bits) -> _Timing:
    """Return the fields that a decoder model adds (sections 5.5.3 and 5.5.4)."""
    if not bits.flag():  # timing_info_present_flag
        return _Timing()
    bits.take(32 + 32)  # num_units_in_display_tick, time_scale
    equal_intervals = bits.flag()
    if equal_intervals:
        bits.skip_uvlc()  # num_ticks_per_picture_minus_1
    if not bits.flag():  # decoder_model_info_present_flag
        return _Timing()
    delay_bits = bits.take(5) + 1
    bits.take(32)  # num_units_in_decoding_tick
    removal_bits = bits.take(5) + 1
    presentation_bits = bits.take(5) + 1
    return _Timing(0 if equal_intervals else presentation_bits, removal_bits, delay_bits)


def _read_operating_points(bits: _Bits, timing: _Timing) -> tuple[_OperatingPoint, ...]:
    points = []
    has_display_delays = bits.flag()
    for _ in range(bits.take(5) + 1):
        layers = bits.take(12)
        if bits.take(5) > 7:  # seq_level_idx
            bits.take(1)  # seq_tier
        has_decoder_model = timing.delay_bits > 0 and bits.flag()
        if has_decoder_model:
            bits.take(2 * timing.delay_bits + 1)
        if has_display_delays and bits.flag():
            bits.take(4)
        points.append(_OperatingPoint(layers, has_decoder_model))
    return tuple(points)


def _read_frame_size(bits: _Bits, sequence: _Sequence, layer: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a frame (section 5.9.2 up to the size); (0, 0) if an earlier frame is shown again."""
    largest = sequence.height, sequence.width
    if sequence.reduced:
        return largest
    if bits.flag():  # show_existing_frame
        return 0, 0
    kind = bits.take(2)
    intra = kind in {_KEY_FRAME, _INTRA_ONLY_FRAME}
    shown = bits.flag()
    bits.take(sequence.timing.presentation_bits if shown else 1)  # or showable_frame
    shown_key_frame = kind == _KEY_FRAME and shown
    resilient = kind == _SWITCH_FRAME or shown_key_frame or bits.flag()
    bits.take(1)  # disable_cdf_update
    tools = bits.take(1) if sequence.screen_content_tools == _SELECT else sequence.screen_content_tools
    if tools and sequence.integer_motion == _SELECT:
        bits.take(1)  # force_integer_mv
    bits.take(sequence.frame_id_bits)
    has_own_size = kind == _SWITCH_FRAME or bits.flag()
    if not has_own_size:
        return largest
    bits.take(sequence.order_hint_bits)
    if not (intra or resilient):
        bits.take(3)  # primary_ref_frame
    if sequence.timing.removal_bits and bits.flag():
        timed = [point for point in sequence.operating_points if point.has_decoder_model and point.has(layer)]
        bits.take(sequence.timing.removal_bits * len(timed))
    refreshed = _ALL_FRAMES if kind == _SWITCH_FRAME or shown_key_frame else bits.take(8)
    if resilient and not (intra and refreshed == _ALL_FRAMES):
        bits.take(sequence.order_hint_bits * _BUFFERED_FRAMES)
    if not intra:
        short = sequence.order_hint_bits > 0 and bits.flag()  # frame_refs_short_signaling
        bits.take(3 + 3 if short else 0)
        bits.take(((0 if short else 3) + sequence.frame_id_delta_bits) * _REFERENCES)
        # found_ref: the same size as an earlier frame, which has been yielded already.
        if not resilient and any(bits.flag() for _ in range(_REFERENCES)):
            return 0, 0
    height_bits, width_bits = sequence.size_bits
    width = bits.take(width_bits) + 1
    return bits.take(height_bits) + 1, width


def _cut_short() -> ImageError:
    return ImageError("the AVIF image is damaged or cut short (its AV1 headers end too early); store or send it again")
