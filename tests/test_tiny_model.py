from pathlib import Path

import numpy as np
import pytest

from fcnseg.engine import Engine, EngineOptions
from tests.tiny_model import write_tiny_model


@pytest.mark.parametrize("class_count", [1, 2, 3, 10, 64, 65, 256, 257, 300])
def test_graph_keeps_the_promises_of_its_metadata(tmp_path: Path, class_count: int) -> None:
    engine = Engine(write_tiny_model(tmp_path / "m.onnx", class_count=class_count), "cpu", EngineOptions(threads=1))
    geometry = engine.info.geometry
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (5, 7), (8, 12), (33, 50)):
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        output = engine.run(images, confidence=True)
        assert output.class_map.shape == (2, height, width)
        assert output.class_map.dtype == (np.uint8 if class_count <= 256 else np.uint16)
        assert output.heatmap.shape == (2, class_count, geometry.y.cells(height), geometry.x.cells(width))
        assert output.confidence is not None
        assert output.confidence.shape == (2, height, width)
        assert engine.run(images).confidence is None

        below, right = (c - s for c, s in zip(geometry.canonical(height, width), (height, width), strict=True))
        padded = engine.run(np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge"))
        np.testing.assert_array_equal(padded.class_map[:, :height, :width], output.class_map)
        np.testing.assert_array_equal(padded.heatmap, output.heatmap)


def test_cells_are_mean_colours_at_the_promised_pixels(tmp_path: Path) -> None:
    engine = Engine(write_tiny_model(tmp_path / "m.onnx"), "cpu", EngineOptions(threads=1))
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    cells = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 16
    np.testing.assert_array_equal(engine.run(image[None]).heatmap[0], cells.astype(np.float32))
    assert engine.info.geometry.y.centre(1) == 2.5
