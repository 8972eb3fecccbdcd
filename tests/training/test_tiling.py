"""Tiles against whole images, on nets of every kind of padding, stride and head."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torchvision.models import resnet18

from fcnseg.bound_run import Images
from fcnseg.engine import EngineOutput
from fcnseg.model_file import ModelInfo
from fcnseg.resample import resample_to_pixels
from fcnseg.segmenter import Segmenter
from fcnseg.tiled import segment_in_tiles
from fcnseg.tiling import plan_tiles
from fcnseg.types import LabelMap
from tests.training.small_nets import LeNet, Pooled, Residual, SqueezeExcited, hidden_tail, seeded
from tests.training.test_model import VggLike, fcn_model, heatmap_model
from tests.training.test_receptive_field import all_paths_open, support
from training.model import SegmentationModel, build_model

pytestmark = pytest.mark.usefixtures("one_thread")
SCORES, CLASSES_DIFFER = 1e-4, 2e-4  # of the scores' range


class TorchEngine:
    """Runs a model in PyTorch as `Engine` runs its file, which takes a minute to export for many nets."""

    device = "cpu"

    def __init__(self, model: SegmentationModel) -> None:
        self._model = model.eval()
        self.info = ModelInfo(
            architecture=model.architecture,
            variant=model.variant,
            label_map=LabelMap.from_names([f"class {i}" for i in range(model.num_classes)]),
            geometry=model.geometry,
            global_context=model.global_context,
            class_map_at=model.class_map_at,
            mean=model.mean,
            std=model.std,
        )

    def run(
        self, images: Images, *, confidence: bool = False, heatmap: bool = True, beside: bool = False
    ) -> EngineOutput:
        del beside
        with torch.no_grad():
            class_map, heatmap, confidences = (t.numpy() for t in self._model(torch.from_numpy(np.stack(images))))
        return EngineOutput(class_map, heatmap, confidences if confidence else None)


def segmenter_of(model: SegmentationModel) -> Segmenter:
    return Segmenter(TorchEngine(model))  # type: ignore[arg-type]


def with_random_scores(model: SegmentationModel) -> SegmentationModel:
    """An FCN whose score layers are not zero, as they are before training."""
    generator = torch.Generator().manual_seed(3)
    for layer in model.net.scores:  # type: ignore[union-attr]
        nn.init.normal_(layer.weight, std=0.3, generator=generator)
    return model


def image_of(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(height * 1009 + width).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    return np.kron(coarse, np.ones((5, 5, 1)))[:height, :width].astype(np.uint8)


def check_tiles(segmenter: Segmenter, image: NDArray[np.uint8], tile: int) -> None:
    whole = segmenter.segment(image, confidence=True)
    tiled = segment_in_tiles(segmenter, image, tile, confidence=True)
    spread = np.ptp(whole.heatmap) + 1e-9
    assert tiled.heatmap.shape == whole.heatmap.shape
    assert np.abs(tiled.heatmap - whole.heatmap).max() <= SCORES * spread
    differs = tiled.class_map != whole.class_map
    if segmenter.info.class_map_at == "pixel" and len(whole.heatmap) > 1:
        geometry = segmenter.info.geometry
        scores = np.stack([resample_to_pixels(s, geometry, *image.shape[:2]) for s in whole.heatmap])
        second, best = np.partition(scores, -2, axis=0)[-2:]
        differs &= best - second > CLASSES_DIFFER * spread
    assert not differs.any()
    assert tiled.confidence is not None
    assert whole.confidence is not None
    assert np.abs(tiled.confidence.astype(int) - whole.confidence).max() <= 1


class WithoutPadding(nn.Module):
    """Even kernels and strides, so that cells are centred between pixels, and a cell sees little."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 12, 2, 2), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


SMALL: dict[str, Callable[[], SegmentationModel]] = {
    "heatmap of unpadded convolutions, another y than x": lambda: heatmap_model(seeded(LeNet), (32, 36)),
    "heatmap of 300 classes, taken at cells that lie half-way between pixels' ties": lambda: heatmap_model(
        seeded(lambda: Pooled(nn.Linear(16, 300))), (64, 64)
    ),
    "heatmap of even kernels": lambda: heatmap_model(seeded(WithoutPadding), (32, 32)),
    "residual FCN-8s": lambda: fcn_model(seeded(Residual), (64, 64)),
    "FCN-8s with an unpadded fc layer": lambda: fcn_model(seeded(VggLike), (128, 128)),
}
MORE: dict[str, Callable[[], SegmentationModel]] = {
    "heatmap": lambda: heatmap_model(seeded(lambda: Pooled(nn.Linear(16, 7))), (64, 64)),
    "heatmap of a window": lambda: heatmap_model(seeded(lambda: Pooled(hidden_tail(16))), (64, 64)),
    "FCN-16s with an unpadded fc layer": lambda: fcn_model(seeded(VggLike), (128, 128), "fcn16s"),
    "FCN-32s with an unpadded fc layer": lambda: fcn_model(seeded(VggLike), (128, 128), "fcn32s"),
}


@pytest.fixture(scope="module", params=[*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def small(request: pytest.FixtureRequest) -> Segmenter:
    return segmenter_of((SMALL | MORE)[request.param]())


@given(st.data())
@settings(max_examples=8)
def test_tiles_give_what_the_whole_image_gives(small: Segmenter, data: st.DataObject) -> None:
    info = small.info
    step = max(info.geometry.y.alignment, info.geometry.x.alignment)
    tile = data.draw(st.integers(1, 3 * step), label="tile")
    longest = 4 * step + 3 * max(info.geometry.y.margin, info.geometry.x.margin)
    along = data.draw(st.integers(1, longest), label="along")
    across = data.draw(st.integers(1, 2 * step), label="across")
    size = (along, across) if data.draw(st.booleans(), label="tall") else (across, along)
    check_tiles(small, image_of(*size), tile)


def test_tiles_down_and_along_give_what_the_whole_image_gives(small: Segmenter) -> None:
    y, x = small.info.geometry.y, small.info.geometry.x
    height, width = (2 * axis.margin + 4 * axis.alignment + 7 for axis in (y, x))
    tile = 3 * min(y.alignment, x.alignment)
    tiling = plan_tiles(small.info, height, width, tile)
    assert len(tiling.rows) >= 3
    assert len(tiling.columns) >= 3
    check_tiles(small, image_of(height, width), tile)


def test_pixels_half_way_between_cells_take_the_same_cell_in_a_tile() -> None:
    """ResNet's cells lie at multiples of the stride: half-way between two, the nearest is that of the even number."""
    segmenter = segmenter_of(SMALL["heatmap of 300 classes, taken at cells that lie half-way between pixels' ties"]())
    axis = segmenter.info.geometry.x
    assert (axis.centre(0), axis.stride) == (0, 8)
    tiling = plan_tiles(segmenter.info, 8, 500, axis.alignment)
    assert {span.read.start % 16 for span in tiling.columns} == {0}
    check_tiles(segmenter, image_of(8, 500), axis.alignment)


@pytest.mark.parametrize("change", [{"margin": 0}, {"alignment": 8, "minimum": 32}])
def test_the_check_finds_a_margin_that_is_too_small_and_a_wrong_phase(change: dict[str, int]) -> None:
    segmenter = segmenter_of(MORE["FCN-16s with an unpadded fc layer"]())
    info = segmenter.info
    x = dataclasses.replace(info.geometry.x, **change)
    segmenter.engine.info = dataclasses.replace(info, geometry=dataclasses.replace(info.geometry, x=x))
    with pytest.raises(AssertionError):
        check_tiles(segmenter, image_of(40, 900), 40)


@pytest.mark.parametrize(
    ("name", "slack"), [("FCN-32s with an unpadded fc layer", 1), ("FCN-8s with an unpadded fc layer", 16)]
)
def test_the_margin_is_what_a_pixel_depends_on(name: str, slack: int) -> None:
    """With skips it may be a little more: the cells of a finer map do not lie a whole coarse stride from their two."""
    model = (SMALL | MORE)[name]()
    axis = model.geometry.x
    model.net = all_paths_open(model.net)
    size = 4 * axis.margin + 4 * axis.alignment
    image = torch.ones(1, 3, max(axis.minimum, 32), axis.padded(size), dtype=torch.float64, requires_grad=True)
    pixels = model.enlarge_scores(model.net(image), (1, size)).sum((0, 1, 2))
    reach = 0
    for pixel in range(size // 2, size // 2 + axis.alignment):
        first, last = support(pixels[pixel], image, 1)
        reach = max(reach, pixel - (first - axis.lead), last - axis.lead - pixel)
    assert axis.margin - slack <= reach <= axis.margin


def test_tiles_of_a_net_with_global_context_are_blended_without_seams() -> None:
    segmenter = segmenter_of(heatmap_model(seeded(SqueezeExcited), (64, 64)))
    image = image_of(200, 180)
    tiling = plan_tiles(segmenter.info, 200, 180, 48)
    assert not tiling.exact
    assert tiling.notice is not None
    assert "blended" in tiling.notice
    whole, tiled = segmenter.segment(image), segment_in_tiles(segmenter, image, 48)
    assert tiled.heatmap.shape == whole.heatmap.shape
    assert np.mean(tiled.class_map == whole.class_map) > 0.9
    # Steps from one cell to the next are not larger where tiles meet than they are in the whole image.
    for axis in (1, 2):
        steps, usual = (np.abs(np.diff(answer.heatmap, axis=axis)).max() for answer in (tiled, whole))
        assert steps < 1.2 * usual


REAL: dict[str, Callable[[], SegmentationModel]] = {
    "MobileNetV2 FCN-8s": lambda: build_model("mobilenet_v2", "fcn8s", 5, pretrained=False),
    "EfficientNet-Lite0 FCN-16s, SAME padding": lambda: build_model(
        "timm/tf_efficientnet_lite0", "fcn16s", 5, pretrained=False
    ),
    "ResNet-18 FCN-32s, learned upsampling": lambda: build_model(
        "resnet18", "fcn8s", 5, upsampling="learned", pretrained=False
    ),
    "AlexNet FCN, fc6 unpadded": lambda: build_model("alexnet", "fcn32s", 5, tail="fc", pretrained=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_tiles_of_real_nets_give_what_the_whole_image_gives(name: str) -> None:
    torch.manual_seed(0)
    segmenter = segmenter_of(with_random_scores(REAL[name]()))
    y, x = segmenter.info.geometry.y, segmenter.info.geometry.x
    check_tiles(segmenter, image_of(2 * y.margin + 3 * y.alignment + 5, 51), 2 * y.alignment)
    check_tiles(segmenter, image_of(33, 2 * x.margin + 4 * x.alignment + 1), x.alignment)


@pytest.mark.slow
def test_tiles_of_a_converted_resnet_give_what_the_whole_image_gives() -> None:
    torch.manual_seed(0)
    segmenter = segmenter_of(heatmap_model(resnet18().eval(), (224, 224)))
    assert segmenter.info.class_map_at == "cell"
    check_tiles(segmenter, image_of(41, 1507), 64)
