"""Answers of a hostile server, as the client reads them: masks within the message limit, or a MaskError."""

import struct
import time
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fcnseg import masks, rle
from fcnseg.errors import MaskError
from fcnseg.masks import Encoding
from fcnseg.types import LabelMap
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.wire import read_models, read_segmentation
from tests.fuzz.law import require_line
from tests.fuzz.memory import MIB, at_most, require_peaks
from tests.fuzz.mutations import examples, mutated
from tests.fuzz.test_images import PNG_SIGNATURE, chunk

MOST_BYTES = 4 * MIB
MOST_TAKEN = 24 * MIB + 4 * MOST_BYTES
SHAPE = (6, 7)
LABELS = LabelMap.from_names(["one", "two", "three"])
MAPS = [np.random.default_rng(0).integers(0, 3, SHAPE).astype(dtype) for dtype in (np.uint8, np.uint16)]
ENCODINGS = [Encoding.RAW, Encoding.ZSTD, Encoding.PNG]
SIDES = st.sampled_from([0, 1, 2, 6, 7, 2**11, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)


def zstd_claim(size: int) -> bytes:
    """A frame whose header claims a size, and which holds one byte."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x09\x00\x00\x07"


def png_claim(height: int, width: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(8 << 20), 9)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


SEEDS = [
    *(masks.encode(ids, encoding, LABELS) for ids in MAPS for encoding in ENCODINGS),
    *(text for ids in MAPS for text in rle.encode(ids).values()),
    zstandard.compress(bytes(8 << 20)),
    zstd_claim(2**40),
    png_claim(2**16, 2**16),
]
BYTES = mutated(SEEDS)


@st.composite
def sound_answers(draw: st.DrawFn) -> pb.SegmentResponse:
    ids = draw(st.sampled_from(MAPS))
    encoding = draw(st.sampled_from(ENCODINGS))
    wire = pb.ClassMap(
        height=SHAPE[0],
        width=SHAPE[1],
        type=pb.CLASS_MAP_TYPE_UINT8 if ids.dtype == np.uint8 else pb.CLASS_MAP_TYPE_UINT16,
        encoding=pb.ClassMapEncoding.Value(f"CLASS_MAP_ENCODING_{encoding.name}"),
        data=masks.encode(ids, encoding, LABELS),
    )
    answer = pb.SegmentResponse(class_map=wire, label_map_hash="0", model_name="tiny", model_version="1")
    if draw(st.booleans()):
        raw = pb.CLASS_MAP_ENCODING_RAW
        answer.confidence.CopyFrom(pb.ConfidenceMap(height=6, width=7, encoding=raw, data=bytes(42)))
    if draw(st.booleans()):
        answer.heatmap_grid.CopyFrom(pb.HeatmapGrid(height=3, width=4, stride=pb.Stride(y=2, x=2)))
        answer.heatmaps.add(scores=bytes(48), probabilities=bytes(48))
    return answer


PARTS = {
    "class_map": st.fixed_dictionaries(
        {},
        optional={
            "height": SIDES,
            "width": SIDES,
            "type": st.integers(0, 4),
            "encoding": st.integers(0, 6),
            "data": BYTES,
            "other_id": st.sampled_from([0, 255, 256, 65_535, 2**32 - 1]),
            "runs": st.lists(
                st.builds(pb.ClassRuns, id=st.integers(0, 3) | st.integers(0, 2**32 - 1), counts=BYTES), max_size=4
            ),
        },
    ).map(lambda fields: pb.ClassMap(**fields)),
    "confidence": st.builds(pb.ConfidenceMap, height=SIDES, width=SIDES, encoding=st.integers(0, 6), data=BYTES),
    "heatmap_grid": st.builds(pb.HeatmapGrid, height=SIDES, width=SIDES),
    "heatmaps": st.lists(st.builds(pb.Heatmap, scores=BYTES, probabilities=BYTES), max_size=2),
    "regions": st.lists(st.builds(pb.Region, score=st.floats(), pixel_count=st.integers(0, 2**64 - 1)), max_size=2),
}


@st.composite
def answers(draw: st.DrawFn) -> pb.SegmentResponse:
    """Answers of which a part or two are odd: the rest is sound, or nothing behind the first check would be seen."""
    answer = draw(sound_answers())
    for name in draw(st.lists(st.sampled_from(list(PARTS)), max_size=2)):
        answer.MergeFrom(pb.SegmentResponse(**{name: draw(PARTS[name])}))
    return answer


def require_law(answer: pb.SegmentResponse) -> None:
    with at_most(MOST_TAKEN):
        try:
            found = read_segmentation(answer, time.perf_counter(), MOST_BYTES)
        except MaskError as error:
            require_line(error)
            return
    assert found.class_map.shape == (answer.class_map.height, answer.class_map.width)
    assert found.class_map.nbytes <= MOST_BYTES


@examples(60)
@given(answers())
def test_an_answer_is_read_or_is_a_mask_error(answer: pb.SegmentResponse) -> None:
    require_peaks()
    require_law(answer)


@pytest.mark.parametrize("encoding", ["ZSTD", "PNG", "RAW"])
@pytest.mark.parametrize("confidence", [False, True])
def test_an_answer_may_claim_any_size_and_takes_no_memory_for_it(encoding: str, *, confidence: bool) -> None:
    require_peaks()
    height = width = 2**20
    data = {"ZSTD": zstd_claim(height * width), "PNG": png_claim(height, width), "RAW": b""}[encoding]
    wire = pb.ClassMapEncoding.Value(f"CLASS_MAP_ENCODING_{encoding}")
    answer = pb.SegmentResponse(
        class_map=pb.ClassMap(height=height, width=width, type=pb.CLASS_MAP_TYPE_UINT8, encoding=wire, data=data)
    )
    if confidence:
        answer.confidence.CopyFrom(pb.ConfidenceMap(height=height, width=width, encoding=wire, data=data))
    require_law(answer)


@examples(60)
@given(mutated([data for data in SEEDS if data.startswith(PNG_SIGNATURE) and len(data) < 2000]))
def test_a_changed_mask_png_is_ids_or_a_mask_error(data: bytes) -> None:
    try:
        ids = masks.read_ids(data)
    except MaskError as error:
        require_line(error)
    else:
        assert ids.ndim == 2
        assert ids.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}


@examples(60)
@given(st.dictionaries(st.integers(-1, 300), BYTES, max_size=4), st.none() | st.integers(-1, 300), st.data())
def test_changed_run_lengths_are_ids_or_a_mask_error(
    runs: dict[int, bytes], other_id: int | None, data: st.DataObject
) -> None:
    shape = data.draw(st.sampled_from([SHAPE, (1, 1), (0, 3), (2**11, 2**11), (2**16, 2**16)]))
    try:
        ids = rle.decode(runs, shape=shape, dtype=data.draw(st.sampled_from([np.uint8, np.uint16])), other_id=other_id)
    except MaskError as error:
        require_line(error)
    else:
        assert ids.shape == shape


@examples(60)
@given(
    mutated([pb.Model(name="tiny", version="1", classes=[pb.Class(id=1, name="a", colour=255)]).SerializeToString()])
)
def test_a_changed_description_of_a_model_is_read(data: bytes) -> None:
    model = pb.Model()
    try:
        model.ParseFromString(data)
    except Exception as error:  # noqa: BLE001 - gRPC's client turns it into a status
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    assert len(read_models([model])) == 1
