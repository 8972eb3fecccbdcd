import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from fcnseg.errors import ArchitectureError, ParityError
from tests.training.small_nets import CLASSES, TAILS, LeNet, Pooled, Residual, conv, hidden_tail, seeded
from training import conversion as surgery
from training.conversion import TOLERANCE, convolutionalize
from training.zoo import load_classifier

FAMILIES = ["mobilenet_v2", "resnet18", "squeezenet1_1", "timm/tf_efficientnet_lite0", "vgg11_bn"]
MORE_FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg16", "wide_resnet50_2",
    "timm/convnext_atto", "timm/darknet53", "timm/densenet121", "timm/hrnet_w18_small", "timm/mobilenetv3_small_100",
    "timm/nf_regnet_b0", "timm/regnety_002", "timm/repvgg_a0", "timm/resnest14d", "timm/resnet18", "timm/vgg11",
    "timm/tf_efficientnet_lite1", "timm/tf_efficientnet_lite2",
]  # fmt: skip


def rel(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("tail", TAILS)
def test_every_tail_shape_keeps_its_identity_on_images_it_was_not_certified_on(tail: str) -> None:
    make, size = TAILS[tail]
    model = seeded(make)
    net, certificate = convolutionalize(model, size)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits, heatmap = model(images), net(images)
    assert certificate.relative_error < TOLERANCE
    if certificate.identity == "window":
        assert heatmap.shape == (3, CLASSES, 1, 1)
    assert rel(heatmap.mean((2, 3)), logits) < TOLERANCE


@pytest.mark.parametrize(
    ("tail", "identity"),
    [
        ("global pooling, one Linear", "cam"),
        ("global pooling, BatchNorm1d", "cam"),
        ("no Linear", "cam"),
        ("mean over the spatial axes", "cam"),
        ("global pooling, LayerNorm", "window"),
        ("global pooling, hidden layers", "window"),
        ("a grid of cells, hidden layers", "window"),
        ("no pooling", "window"),
    ],
)
def test_auto_takes_cam_only_where_all_behind_the_pooling_is_affine(tail: str, identity: str) -> None:
    make, size = TAILS[tail]
    assert convolutionalize(seeded(make), size).certificate.identity == identity


def test_cam_on_a_tail_that_is_not_affine_is_refused() -> None:
    make, size = TAILS["global pooling, hidden layers"]
    with pytest.raises(ParityError, match="rule cam: .*Rule window may hold"):
        convolutionalize(seeded(make), size, rule="cam")


def test_window_rule_is_exact_for_global_pooling() -> None:
    make, size = TAILS["mean over the spatial axes"]
    assert convolutionalize(seeded(make), size, rule="window").certificate.identity == "window"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_zoo_classifiers_convert(architecture: str) -> None:
    classifier = load_classifier(architecture, pretrained=False)
    net = seeded(lambda: classifier.net)
    assert convolutionalize(net, classifier.input_size).certificate.relative_error < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MORE_FAMILIES)
def test_more_zoo_classifiers_convert(architecture: str) -> None:
    classifier = load_classifier(architecture, pretrained=False)
    net = seeded(lambda: classifier.net)
    assert convolutionalize(net, classifier.input_size).certificate.relative_error < TOLERANCE


def test_unpadded_net_at_twice_its_size_equals_the_classifier_on_every_crop() -> None:
    model = seeded(LeNet)
    net = convolutionalize(model, (32, 36)).net
    image = torch.randn(1, 3, 64, 72, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heatmap = net(image)
        assert heatmap.shape[2:] == ((64 - 32) // 4 + 1, (72 - 36) // 4 + 1)
        for y in range(heatmap.shape[2]):
            for x in range(heatmap.shape[3]):
                crop = image[:, :, 4 * y : 4 * y + 32, 4 * x : 4 * x + 36]
                assert rel(heatmap[:, :, y, x], model(crop)) < TOLERANCE


def test_the_classifier_is_not_changed() -> None:
    model = seeded(lambda: Pooled(hidden_tail(16)))
    before = copy.deepcopy(model.state_dict())
    net = convolutionalize(model, (64, 64)).net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_parameters_keep_their_names() -> None:
    model = seeded(lambda: Pooled(hidden_tail(16 * 16), grid=4))
    net = convolutionalize(model, (32, 32)).net
    assert set(net.state_dict()) == set(model.state_dict())
    assert net.state_dict()["tail.0.weight"].shape == (20, 16, 4, 4)


@pytest.mark.parametrize("make", [lambda: Pooled(hidden_tail(16)), Residual], ids=["layer", "function"])
def test_dropout_still_drops_in_training_alone(make: Callable[[], nn.Module]) -> None:
    net = convolutionalize(seeded(make), (64, 64)).net
    image = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(image), net(image))
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(net(image), net(image))
        net.eval()
        assert torch.equal(net(image), net(image))


def test_a_wrong_flatten_order_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery._as_convolution

    def wrong(linear: nn.Linear, grid: tuple[int, int]) -> nn.Conv2d:
        conv = right(linear, grid)
        p, q = grid
        weight = linear.weight.detach().view(linear.out_features, p, q, -1).permute(0, 3, 1, 2).contiguous()
        conv.weight = nn.Parameter(weight)
        return conv

    monkeypatch.setattr(surgery, "_as_convolution", wrong)
    with pytest.raises(ParityError):
        convolutionalize(seeded(lambda: Pooled(hidden_tail(16 * 16), grid=4)), (32, 32))


def test_a_lost_bias_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery._as_convolution

    def wrong(linear: nn.Linear, grid: tuple[int, int]) -> nn.Conv2d:
        conv = right(linear, grid)
        conv.bias = None
        return conv

    monkeypatch.setattr(surgery, "_as_convolution", wrong)
    with pytest.raises(ParityError):
        convolutionalize(seeded(LeNet), (32, 36))


def test_a_net_without_a_recognisable_tail_is_refused_with_what_was_found() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.fc(torch.cumsum(x.mean((2, 3)), 1) * x.mean((2, 3)))

    with pytest.raises(ArchitectureError, match="Linear"):
        convolutionalize(Odd(), (32, 32))


def test_a_transformer_is_refused_with_the_reason_before_its_weights_are_fetched() -> None:
    with pytest.raises(ArchitectureError, match="transformer: its position embedding"):
        load_classifier("vit_b_16")


def test_certificate_tells_shares_and_context() -> None:
    certificate = convolutionalize(seeded(TAILS["squeeze and excitation"][0]), (64, 64)).certificate
    assert certificate.global_context
    assert certificate.fc_parameters == 8 * 16 + 16 + 16 * CLASSES + CLASSES
    assert not convolutionalize(seeded(Residual), (64, 64)).certificate.global_context
    rows = dict(certificate.rows())
    assert rows["global context"].startswith("yes: 1")
    assert str(certificate).splitlines()[0] == "identity          window: one cell at native size = logits"


def test_dropout_in_place_does_not_spoil_the_gradient_of_what_it_now_follows() -> None:
    net = convolutionalize(
        seeded(lambda: Pooled(nn.Sequential(nn.Dropout(inplace=True), nn.Linear(16, 3)))), (64, 64)
    ).net
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_lost_activation_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery.dense_trunk

    def wrong(model: nn.Module, *rest: Any) -> surgery.Trunk:
        trunk = right(model, *rest)
        assert isinstance(trunk.net.get_submodule("tail.1"), nn.ReLU)
        trunk.net.set_submodule("tail.1", nn.Identity())
        return trunk

    model = seeded(lambda: Pooled(hidden_tail(16 * 16), grid=4))
    convolutionalize(model, (32, 32))
    monkeypatch.setattr(surgery, "dense_trunk", wrong)
    with pytest.raises(ParityError, match="on images of noise"):
        convolutionalize(model, (32, 32))


def test_an_answer_that_is_no_number_fails_the_proof() -> None:
    model = seeded(LeNet)
    with torch.no_grad():
        model.fc[0].weight[0, 0] = torch.nan
    with pytest.raises(ParityError, match="relative error nan"):
        convolutionalize(model, (32, 36))


def test_the_border_effect_is_zero_for_nets_without_padding_alone() -> None:
    assert convolutionalize(seeded(LeNet), (32, 36)).certificate.border_effect == 0
    padded = convolutionalize(seeded(lambda: Pooled(hidden_tail(16))), (64, 64)).certificate
    assert padded.border_effect > 0.001


def test_photographs_are_measured_in_the_channels_that_the_net_takes() -> None:
    def flat(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
        )

    for channels in (1, 3):
        error = convolutionalize(seeded(lambda c=channels: flat(c)), (32, 32)).certificate.photo_error
        assert error is not None
        assert error < TOLERANCE
    assert convolutionalize(seeded(lambda: flat(4)), (32, 32)).certificate.photo_error is None


class Bands(nn.Module):
    """A net for images of several bands, made for one size: its Linear layer reads the whole map."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(bands, 6, 5, 2), nn.Linear(6 * 14 * 14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


class Folded(nn.Module):
    """A net for RGB images that folds blocks of 2x2 pixels into channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(12, 6, 3, padding=1), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        folded = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return self.fc(self.conv(folded).relu().mean((2, 3)))


@pytest.mark.parametrize("bands", [12, 27])
def test_a_net_of_as_many_bands_as_folded_rgb_has_is_not_taken_for_rgb(bands: int) -> None:
    net, certificate = convolutionalize(seeded(lambda: Bands(bands)), (32, 32))
    assert certificate.photo_error is None
    with torch.no_grad():
        assert net(torch.zeros(1, bands, 64, 64)).shape == (1, CLASSES, 17, 17)


def test_the_proof_is_made_with_exact_products() -> None:
    rounded: list[bool] = []

    def note(_module: nn.Module, args: tuple[Tensor]) -> None:
        if type(args[0]) is Tensor and torch.backends.cudnn.enabled:  # the shapes' run has no numbers to round
            rounded.append(torch.backends.cudnn.allow_tf32)

    model = seeded(lambda: Pooled(nn.Linear(16, CLASSES)))
    model.features[0].register_forward_pre_hook(note)  # type: ignore[union-attr]
    convolutionalize(model, (64, 64))
    assert torch.backends.cudnn.allow_tf32, "torch rounds unless it is told not to"
    assert rounded
    assert not any(rounded)


def test_a_net_that_folds_pixels_into_channels_takes_rgb() -> None:
    net, certificate = convolutionalize(seeded(Folded), (32, 32))
    assert certificate.photo_error is not None
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, CLASSES, 32, 32)


def test_an_image_shifted_by_the_alignment_shifts_the_interior_by_whole_cells() -> None:
    net, certificate = convolutionalize(seeded(Residual), (64, 64))
    (stride, _), (align, _), (field, _) = certificate.output_stride, certificate.alignment, certificate.receptive_field
    size = 2 * field + 10 * align
    image = torch.randn(1, 3, 64, size + align, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        still, moved = net(image[..., :size]), net(image[..., align:])
    cells, edge = align // stride, -(-field // stride)
    inner = still.shape[3] - 2 * edge - cells
    assert inner >= 2
    assert rel(moved[..., edge : edge + inner], still[..., edge + cells : edge + cells + inner]) < 1e-5


class BranchOnShape(nn.Module):
    """As the head of timm's VGG: small maps are pooled to the kernel's size, which the native size never is."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = conv(3, 8, stride=2), nn.Conv2d(8, 10, 7)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.shape[-2] < 7 or x.shape[-1] < 7:
            x = nn.functional.adaptive_avg_pool2d(x, (7, 7))
        return self.fc(self.head(x).flatten(2).mean(2))


def test_a_branch_on_a_shape_is_the_one_that_the_native_size_takes() -> None:
    net, certificate = convolutionalize(seeded(BranchOnShape), (14, 14))
    assert certificate.receptive_field == (15, 15)
    assert net(torch.zeros(1, 3, 30, 34)).shape == (1, CLASSES, 9, 11)


class Local(nn.Module):
    """Convolutions, and something in their midst."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.fc = conv(3, 8, stride=2), middle, nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.stem(x)).mean((2, 3)))


class CellsByCells(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        cells = x.flatten(2)
        return (cells @ (cells.transpose(1, 2) @ cells).softmax(-1)).view_as(x)


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]


WHOLE_ROWS_OR_COLUMNS: dict[str, Callable[[Tensor], Tensor]] = {
    "mirror": lambda x: x + x.flip(3),
    "roll": lambda x: x + x.roll(1, 2),
    "sum up": lambda x: x.cumsum(2),
    "normalise columns": lambda x: F.normalize(x, dim=2),
    "spread": lambda x: x / (1 + x.std((2, 3), keepdim=True)),
    "maximum in two steps": lambda x: x / (1 + x.max(3, keepdim=True)[0].max(2, keepdim=True).values),
    "logarithm of a sum": lambda x: x - x.logsumexp(3, keepdim=True),
    "logarithm of a softmax": lambda x: x.log_softmax(2),
    "wherever the numbers say": lambda x: deform_conv2d(x, x[:, :2].tanh(), torch.eye(8)[:, :, None, None]),
    "wherever a grid says": lambda x: F.grid_sample(x, x[:, :2].movedim(1, 3).tanh(), align_corners=False),
}
PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "coordinates": lambda x: x + torch.linspace(-1, 1, x.shape[3]),
    "numbers of rows": lambda x: x + 0.1 * torch.arange(x.shape[2])[:, None],
    "position embedding": lambda x: (
        x + F.interpolate(torch.arange(16.0).view(1, 1, 4, 4), x.shape[2:], mode="bilinear")
    ),
    "size": lambda x: x * (16 / x.shape[3]),
}
ROWS_OR_COLUMNS_POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "columns to a cell": lambda x: x * F.adaptive_avg_pool2d(x, (1, None)).sigmoid(),
    "rows to a cell": lambda x: x * F.adaptive_max_pool2d(x, (None, 1)).sigmoid(),
}
UNKNOWN_REACH: dict[str, Callable[[Tensor], Tensor]] = {
    "spectrum": lambda x: torch.fft.fft2(x).real,
    "spectrum of columns": lambda x: torch.fft.fft(x, dim=2).real,
    "spectrum of rows": lambda x: torch.fft.fft(x, dim=3).real,
}
CHANNEL_BY_CHANNEL: dict[str, Callable[[Tensor], Tensor]] = {
    "normalise channels": F.normalize,
    "largest channel": lambda x: x * x.max(1)[0].unsqueeze(1),
    "least channel": lambda x: x * x.min(1, keepdim=True)[0].sigmoid(),
    "number of the largest channel": lambda x: x * x.argmax(1, keepdim=True),
    # as many channels in each half as there are rows and columns
    "larger half": lambda x: torch.cat([x.view(-1, 2, 4, *x.shape[2:]).max(1)[0]] * 2, 1),
}


@pytest.mark.parametrize(
    ("function", "named"),
    [
        *((function, ("middle",)) for function in WHOLE_ROWS_OR_COLUMNS.values()),
        *((function, ("middle",)) for function in ROWS_OR_COLUMNS_POOLED.values()),
        *((function, ("an operator whose reach is not known",)) for function in UNKNOWN_REACH.values()),
        *((function, ("the place in the image, or the image's size",)) for function in PLACES.values()),
        *((function, ()) for function in CHANNEL_BY_CHANNEL.values()),
    ],
    ids=[*WHOLE_ROWS_OR_COLUMNS, *ROWS_OR_COLUMNS_POOLED, *UNKNOWN_REACH, *PLACES, *CHANNEL_BY_CHANNEL],
)
def test_operators_that_see_whole_rows_or_columns_are_told(
    function: Callable[[Tensor], Tensor], named: tuple[str, ...]
) -> None:
    certificate = convolutionalize(seeded(lambda: Local(Applied(function))), (8, 8)).certificate
    assert certificate.global_context == named
    assert (certificate.output_stride, certificate.receptive_field) == ((2, 2), (3, 3))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x + torch.ones(16, 16), "works at 32x32 pixels but not at 4x4"),
        (lambda x: x + torch.ones(40, 40)[: x.shape[2], : x.shape[3]], "works at 32x32 pixels but not at 130x130"),
        (lambda x: x[:, :, :16, :16], "1x1 cells at 2x2 pixels, 16x16 at 130x130"),
    ],
    ids=["position embedding", "larger position embedding", "crop"],
)
def test_a_net_that_ends_at_a_size_is_refused(function: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        convolutionalize(seeded(lambda: Local(Applied(function))), (32, 32))


def test_a_net_without_padding_may_see_the_whole_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), Applied(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()))
    model = seeded(lambda: nn.Sequential(net, nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 13 * 13, CLASSES)))
    certificate = convolutionalize(model, (32, 32)).certificate
    assert certificate.global_context == ("0",)
    assert certificate.border_effect > TOLERANCE


def test_a_net_that_turns_its_map_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="not a map"):
        convolutionalize(seeded(lambda: Local(Applied(lambda x: x.transpose(2, 3)))), (32, 32))


@pytest.mark.parametrize(
    ("middle", "named"),
    [
        (nn.GroupNorm(2, 8), "middle"),
        (nn.InstanceNorm2d(8), "middle"),
        (CellsByCells(), "middle"),
        (nn.BatchNorm2d(8), None),
        (nn.Upsample(scale_factor=2, mode="bilinear"), None),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_whatever_sees_the_whole_image_is_told(middle: nn.Module, named: str | None) -> None:
    found = convolutionalize(seeded(lambda: Local(middle)), (32, 32)).certificate.global_context
    assert found == (() if named is None else (named,))


def test_a_size_that_is_not_the_native_one_is_told() -> None:
    with pytest.raises(ArchitectureError, match="cannot be run on an image of 64x64.*input_size"):
        convolutionalize(seeded(LeNet), (64, 64))


@pytest.mark.parametrize("norm", [nn.LayerNorm(36), nn.BatchNorm1d(36)], ids=["LayerNorm", "BatchNorm1d"])
def test_a_normalisation_over_a_flattened_grid_is_refused(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), norm, nn.Linear(36, CLASSES))
    with pytest.raises(ArchitectureError, match="36 values of a flattened 3x3 grid"):
        convolutionalize(seeded(lambda: net), (5, 5))


@pytest.mark.parametrize(
    "pool",
    [lambda x: x.flatten(2).mean(-1), lambda x: x.mean(3).mean(2)],
    ids=["flattened", "axis by axis"],
)
def test_a_mean_in_two_steps_is_global_pooling(pool: Callable[[Tensor], Tensor]) -> None:
    class Stepwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.fc = conv(3, 8, stride=2), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(pool(self.features(x)))

    assert convolutionalize(seeded(Stepwise), (32, 24)).certificate.identity == "cam"


def test_a_global_maximum_becomes_a_window() -> None:
    net = nn.Sequential(conv(3, 8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    assert convolutionalize(seeded(lambda: net), (16, 12)).certificate.identity == "window"


def test_conversion_works_in_inference_mode() -> None:
    model = seeded(LeNet)
    with torch.inference_mode():
        assert convolutionalize(model, (32, 36)).certificate.relative_error < TOLERANCE


PEAK = """
import torch, torchvision
from torch import nn
from training import convolutionalize

def memory(kind):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))

torch.set_num_threads(1)
warm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
convolutionalize(warm, (32, 32))  # imports and caches are no part of it
before = memory("VmRSS")
classifier = torchvision.models.vgg16()
weights = sum(p.numel() * p.element_size() for p in classifier.parameters())
net, _ = convolutionalize(classifier)
print((memory("VmHWM") - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_converting_vgg16_takes_at_most_two_and_a_half_times_its_weights() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 1.9 < float(done.stdout) < 2.5  # the classifier and the net are there at the end
