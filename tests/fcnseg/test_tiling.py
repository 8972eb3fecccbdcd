import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fcnseg
from fcnseg.engine import EngineOptions
from fcnseg.errors import ImageError, UsageError
from fcnseg.geometry import AxisGeometry, Geometry
from fcnseg.model_file import ModelInfo
from fcnseg.segmenter import Segmenter
from fcnseg.tiled import segment_in_tiles, segment_windows
from fcnseg.tiling import Span, choose_tile, plan_tiles
from fcnseg.windows import ArrayImage
from tests.fcnseg.test_geometry import axes
from tests.tiny_model import tiny_info, write_tiny_model

GOLDEN = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"
sizes = st.integers(1, 3000)
tiles = st.integers(1, 1000)


@pytest.fixture(scope="module")
def golden() -> Segmenter:
    return fcnseg.load(GOLDEN, "cpu", threads=1)


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    """Patches of colour with noise: any crop of one is like another."""
    random = np.random.default_rng(height * 1009 + width)
    patches = np.kron(random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)), np.ones((16, 16, 1)))
    return (patches[:height, :width] * 0.9 + random.integers(0, 25, (height, width, 1))).astype(np.uint8)


@st.composite
def infos(draw: st.DrawFn) -> ModelInfo:
    """The metadata of some net, whose last cell lies within a stride of the last pixel, as `trail` sees to."""
    y, x = (dataclasses.replace(draw(axes()), extra_cells=0) for _ in range(2))
    return dataclasses.replace(
        tiny_info(),
        geometry=Geometry(y, x),
        class_map_at=draw(st.sampled_from(["pixel", "cell"])),
        global_context=draw(st.sampled_from([(), ("layer.se",)])),
    )


def check_spans(axis: AxisGeometry, size: int, spans: tuple[Span, ...], phase: int) -> None:
    assert [span.core.start for span in spans] == [0, *(span.core.stop for span in spans[:-1])]
    assert spans[-1].core.stop == size
    assert [span.cells.start for span in spans] == [0, *(span.cells.stop for span in spans[:-1])]
    assert spans[-1].cells.stop == axis.cells(size)
    for span in spans:
        assert span.read.start % phase == 0
        assert span.first_cell * axis.stride == span.read.start
        assert span.read.start == 0 or span.core.start - span.read.start >= axis.margin
        assert span.read.stop == size or span.read.stop - span.core.stop >= axis.margin
        if span.read.stop == size:  # the padding behind the image is where it is in the whole image
            assert axis.padded(size - span.read.start) == axis.padded(size) - span.read.start


@given(infos(), sizes, sizes, tiles)
def test_tiles_cover_every_pixel_and_cell_once_on_the_images_own_phase(
    info: ModelInfo, height: int, width: int, tile: int
) -> None:
    tiling = plan_tiles(info, height, width, tile)
    factor = 4 if info.global_context else {"pixel": 1, "cell": 2}[info.class_map_at]
    for axis, size, spans in (
        (info.geometry.y, height, tiling.rows),
        (info.geometry.x, width, tiling.columns),
    ):
        check_spans(axis, size, spans, math.lcm(axis.alignment, factor * axis.stride))
    assert len(tiling) == len(list(tiling))
    assert tiling.exact == (len(tiling) == 1 or not info.global_context)
    assert (tiling.notice is None) == tiling.exact


TWO_PHASES = dataclasses.replace(
    tiny_info(),
    geometry=Geometry(AxisGeometry(2, 0.0, 1, 4, 76, 8, 65, 0, 111), AxisGeometry(4, 0.0, 1, 8, 104, 32, 68, 0, 93)),
    global_context=("gate",),
)


@given(infos(), sizes, sizes, st.integers(1, 10**7))
@example(TWO_PHASES, 252, 213, 101_120)  # the smallest tile's rows have the finer phase, its columns the coarser
def test_the_tile_that_is_chosen_fits_and_the_whole_image_does_not(
    info: ModelInfo, height: int, width: int, max_pixels: int
) -> None:
    try:
        tile = choose_tile(info, height, width, max_pixels)
    except UsageError:
        assert plan_tiles(info, height, width, 1).largest > max_pixels
        return
    assert plan_tiles(info, height, width, tile).largest <= max_pixels
    if tile is not None:
        assert plan_tiles(info, height, width, None).largest > max_pixels


def test_an_image_that_fits_is_not_cut() -> None:
    info = tiny_info()
    assert choose_tile(info, 40, 60, 40 * 60) is None
    assert choose_tile(info, 400, 600, 104 * 104) == 88  # 7 along 600; 96, the largest that fits, makes no fewer
    with pytest.raises(UsageError, match="the smallest tile of tiny with its margins has 144 pixels, and there"):
        choose_tile(info, 400, 600, 100)
    with pytest.raises(UsageError, match="tiles of 0 pixels were asked for"):
        plan_tiles(info, 40, 60, 0)


def test_the_work_of_tiles_is_what_their_margins_add() -> None:
    info = tiny_info()
    assert plan_tiles(info, 400, 600, None).work == 1
    tiling = plan_tiles(info, 400, 400, 100)  # 100, with margins of 4 before and 2 behind, padded to 108 or 104
    assert tiling.work == pytest.approx((104 + 108 + 108 + 104) ** 2 / 400**2)


@settings(max_examples=40)
@given(st.sampled_from([3, 70]), st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_tiles_give_the_whole_images_answer(
    tmp_path_factory: pytest.TempPathFactory, classes: int, height: int, width: int, tile: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"tiny{classes}.onnx"
    segmenter = fcnseg.load(path if path.exists() else write_tiny_model(path, class_count=classes), "cpu", threads=1)
    image = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), np.uint8)
    whole, tiled = segmenter.segment(image, confidence=True), segment_in_tiles(segmenter, image, tile, confidence=True)
    assert np.array_equal(tiled.class_map, whole.class_map)
    assert np.array_equal(tiled.heatmap, whole.heatmap)
    assert np.array_equal(tiled.confidence, whole.confidence)
    assert tiled.classes == whole.classes


@pytest.mark.parametrize("at_a_time", [2, 3, 50])
def test_tiles_that_run_at_a_time_give_the_same_answer(golden: Segmenter, at_a_time: int) -> None:
    image = photograph(403, 301)
    alone = segment_in_tiles(golden, image, 70, confidence=True)
    steps: list[tuple[int, int]] = []
    found = segment_in_tiles(
        golden, image, 70, confidence=True, progress=lambda *step: steps.append(step), at_a_time=at_a_time
    )
    assert np.array_equal(found.class_map, alone.class_map)
    assert np.array_equal(found.heatmap, alone.heatmap)
    assert np.array_equal(found.confidence, alone.confidence)
    assert steps == [(i, len(steps)) for i in range(len(steps))]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (403, 301), (64, 530)])
def test_tiles_give_the_whole_images_answer_with_wide_margins(golden: Segmenter, size: tuple[int, int]) -> None:
    image = photograph(*size)
    whole, tiled = golden.segment(image, confidence=True), segment_in_tiles(golden, image, 70, confidence=True)
    spread = np.ptp(whole.heatmap)
    assert np.abs(tiled.heatmap - whole.heatmap).max() < 1e-4 * spread
    assert np.mean(tiled.class_map != whole.class_map) < 1e-4
    assert tiled.confidence is not None
    assert whole.confidence is not None
    assert np.abs(tiled.confidence.astype(int) - whole.confidence).max() <= 1


@pytest.mark.parametrize("size", [(403, 301), (333, 611)])
@pytest.mark.parametrize("class_map_at", ["pixel", "cell"])
def test_blended_tiles_that_agree_where_they_overlap_give_the_whole_images_answer(
    size: tuple[int, int], class_map_at: str
) -> None:
    """The net has no global context; the blending is told that it has."""
    segmenter = fcnseg.load(GOLDEN, "cpu", threads=1)
    image = photograph(*size)
    whole = segmenter.segment(image, confidence=True)
    context = {"global_context": ("fc.se",), "class_map_at": class_map_at}
    segmenter.engine.info = dataclasses.replace(segmenter.info, **context)
    assert not plan_tiles(segmenter.info, *size, 64).exact
    tiled = segment_in_tiles(segmenter, image, 64, confidence=True)
    assert np.abs(tiled.heatmap - whole.heatmap).max() < 1e-4 * np.ptp(whole.heatmap)
    assert tiled.confidence is not None
    assert whole.confidence is not None
    if class_map_at == "pixel":
        assert np.mean(tiled.class_map != whole.class_map) < 1e-4
        assert np.abs(tiled.confidence.astype(int) - whole.confidence).max() <= 1
        return
    axis = segmenter.info.geometry.y  # both axes are alike
    rows, columns = (
        np.clip(np.rint((np.arange(extent) - axis.centre(0)) / axis.stride).astype(int), 0, axis.cells(extent) - 1)
        for extent in size
    )
    at_cells = whole.heatmap.argmax(0)[np.ix_(rows, columns)]
    assert np.mean(tiled.class_map != at_cells) < 1e-4


def test_a_model_with_global_context_tells_in_one_line_what_tiles_cost() -> None:
    info = dataclasses.replace(tiny_info(), global_context=("a.se", "b.se", "c.se", "d.se"))
    notice = plan_tiles(info, 400, 400, 100).notice
    assert notice is not None
    assert "tiny looks at the whole image at once (a.se, b.se, c.se and 1 more), and sees 16 tiles instead" in notice
    assert "\n" not in notice


class Counted(ArrayImage):
    """Notes how much is read at a time."""

    most = 0

    def read(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        Counted.most = max(Counted.most, (rows.stop - rows.start) * (columns.stop - columns.start))
        return super().read(rows, columns)


def test_no_more_is_read_at_a_time_than_a_tile_with_its_margins(golden: Segmenter) -> None:
    image = Counted(photograph(500, 900))
    tiling = plan_tiles(golden.info, 500, 900, 64)
    windows = list(segment_windows(golden, image, tiling))
    assert len(windows) == len(tiling) > 20
    assert 0 < Counted.most <= tiling.largest < 500 * 900


def test_pixels_of_another_shape_are_refused(golden: Segmenter) -> None:
    with pytest.raises(ImageError, match=r"must be a \(H, W, 3\) uint8 array"):
        segment_in_tiles(golden, np.zeros((40, 40), np.uint8), 32)


def test_a_run_without_confidence_has_a_cost_of_its_own() -> None:
    probe = fcnseg.load(GOLDEN, "cpu", options=EngineOptions(threads=1, prove=True)).engine.probe
    assert probe is not None
    assert 0 < probe.plain_bytes_per_pixel <= probe.bytes_per_pixel
