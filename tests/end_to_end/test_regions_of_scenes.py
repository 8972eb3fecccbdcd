"""A net fine-tuned on generated scenes and served finds the shapes of scenes it has not seen, with their boxes.

A shape counts as found when a region of its class has a box with an intersection over union of at least one half with
the box of what is to be seen of it; a region stands for one shape at most. Scenes with two shapes of one class are left
out: where such shapes touch, they are one region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from fcnseg.client import Client
from fcnseg.regions import Box, Region, RegionQuery
from tests.running_server import running_server

torch = pytest.importorskip("torch", reason="the whole path needs the train extra")

SIZE = 128
SHAPES = ("disc", "triangle", "ring", "cross")
LEAST_IOU = 0.5
UNSEEN = 60


@dataclass(frozen=True)
class Found:
    """Recall is the share of shapes that a region finds, precision the share of regions that find a shape."""

    recall: float
    precision: float


def iou(a: Box, b: Box) -> float:
    rows = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    columns = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    shared = max(rows, 0) * max(columns, 0)
    return shared / (a.height * a.width + b.height * b.width - shared)


def train_and_serve(folder: Path, epochs: int) -> Found:
    """Fine-tune on scenes, and measure what the server finds in others."""
    from training.commands.export import export
    from training.commands.train import train
    from training.scenes import SceneShape, draw_scene, write_scenes

    def count_matches(shapes: Sequence[SceneShape], regions: Sequence[Region]) -> int:
        left, matches = list(regions), 0
        for shape in shapes:
            fitting = [r for r in left if r.info.name == shape.info.name and iou(r.box, shape.box) >= LEAST_IOU]
            if fitting:
                left.remove(max(fitting, key=lambda region: iou(region.box, shape.box)))
                matches += 1
        return matches

    def call(command: object, *arguments: object) -> None:
        done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)  # type: ignore[arg-type]
        assert done.exit_code == 0

    list(write_scenes(folder / "scenes", {"train": 400, "val": 4}, size=SIZE))
    recipe = ("--epochs", epochs, "--lr", 0.015, "--scale-jitter", 0.9, 1.1, "--device", "cpu")
    call(train, folder / "scenes", "--backbone", "timm/tf_efficientnet_lite0", *recipe, "-o", folder / "run")
    call(export, folder / "run", "-o", folder / "scenes.onnx")
    seen_never = (draw_scene((1, i), SIZE) for i in count())
    distinct = (scene for scene in seen_never if len({s.info for s in scene.shapes}) == len(scene.shapes))
    shapes = regions = matches = 0
    with running_server(folder / "scenes.onnx") as server, Client(server.address) as client:
        for scene in islice(distinct, UNSEEN):
            answer = client.segment(scene.image, regions=RegionQuery(SHAPES))
            shapes += len(scene.shapes)
            regions += len(answer.regions)
            matches += count_matches(scene.shapes, answer.regions)
    return Found(matches / shapes, matches / regions)


def test_after_one_epoch_most_shapes_are_found(tmp_path: Path, one_thread: None) -> None:
    found = train_and_serve(tmp_path, epochs=1)
    assert found.recall > 0.8, found
    assert found.precision > 0.4, found


@pytest.mark.slow
def test_after_six_epochs_nearly_all_shapes_are_found(tmp_path: Path, one_thread: None) -> None:
    found = train_and_serve(tmp_path, epochs=6)
    assert found.recall > 0.9, found
    assert found.precision > 0.7, found
