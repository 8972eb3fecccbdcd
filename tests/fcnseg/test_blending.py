"""Tiles of constant scores show by what share of each the blended ones are made."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcnseg.blending import Blender
from fcnseg.tiling import Span, Tiling, plan_tiles
from tests.tiny_model import tiny_info

INFO = replace(tiny_info(), global_context=("layer.se",))


def blended(tiling: Tiling, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blend tiles each of which has one score everywhere.

    Args:
        tiling: The tiles.
        levels: (rows of tiles, columns of tiles) scores of the first class; the others are lower.

    Returns:
        (h, w) scores of the first class at the image's cells.
    """
    blender = Blender(tiling, confidence=False)
    geometry = tiling.info.geometry
    found = np.full((geometry.y.cells(tiling.height), geometry.x.cells(tiling.width)), np.nan, np.float32)
    for (rows, columns), level in zip(tiling, levels.flat, strict=True):
        shape = [span.valid.stop - span.valid.start for span in (rows, columns)]
        scores = np.stack([np.full(shape, level - lower, np.float32) for lower in range(3)])
        window = blender.blend(rows, columns, scores)
        assert np.isnan(found[window.cell_rows, window.cell_columns]).all()
        found[window.cell_rows, window.cell_columns] = window.heatmap[0]
        assert not window.class_map.any()
    return found


def shares(spans: tuple[Span, ...], cells: int) -> NDArray[np.float64]:
    """Return (spans, cells): what each span's scores count in each cell, rising and falling in straight lines."""
    knots = [0]
    for before, after in pairwise(spans):
        knots += [after.valid.start, before.valid.stop]
    knots.append(cells)
    own = np.repeat(np.eye(len(spans)), 2, axis=1)
    return np.stack([np.interp(np.arange(cells), knots, weights) for weights in own])


def test_scores_ramp_from_a_tile_to_the_next_over_the_cells_that_both_have() -> None:
    across, down = plan_tiles(INFO, 4, 64, 32), plan_tiles(INFO, 64, 4, 32)
    first, second = across.columns
    assert (first.valid, second.valid) == (slice(0, 18), slice(14, 32))
    ramp = [8.0] * 15 + [10.0, 12.0, 14.0] + [16.0] * 14
    assert blended(across, np.array([[8, 16]], np.float32)).tolist() == [ramp, ramp]
    assert blended(down, np.array([[8], [16]], np.float32)).tolist() == [[score, score] for score in ramp]


@pytest.mark.parametrize("class_map_at", ["pixel", "cell"])
def test_every_tile_counts_by_its_share_in_rows_and_in_columns(class_map_at: str) -> None:
    info = replace(INFO, class_map_at=class_map_at)

    @settings(max_examples=60)
    @given(st.integers(1, 150), st.integers(1, 150), st.integers(8, 80), st.randoms(use_true_random=False))
    def check(height: int, width: int, tile: int, random: Random) -> None:
        tiling = plan_tiles(info, height, width, tile)
        shape = len(tiling.rows), len(tiling.columns)
        levels = np.array([random.randint(-1000, 1000) for _ in range(len(tiling))], np.float32)
        found = blended(tiling, levels.reshape(shape))
        down, across = (shares(spans, n) for spans, n in zip((tiling.rows, tiling.columns), found.shape, strict=True))
        np.testing.assert_allclose(found, down.T @ levels.reshape(shape) @ across, rtol=1e-5, atol=1e-3)

    check()


def test_where_scores_are_no_numbers_the_confidence_is_0() -> None:
    tiling = plan_tiles(INFO, 4, 64, 32)
    blender = Blender(tiling, confidence=True)
    (rows,), (columns, _) = tiling.rows, tiling.columns
    scores = np.zeros((3, rows.valid.stop, columns.valid.stop), np.float32)
    scores[0, :, :2] = np.nan
    confidence = blender.blend(rows, columns, scores).confidence
    assert confidence is not None
    assert not confidence[:, :2].any()
    assert (confidence[:, 6:] == 85).all()
