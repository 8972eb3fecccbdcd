import copy

import pytest
import torch
from torch import nn

from fcnseg.errors import ArchitectureError, ParityError
from tests.training.small_nets import CLASSES, TAILS, LeNet, Pooled, Residual, hidden_tail, seeded
from training import conversion as surgery
from training.conversion import TOLERANCE, convolutionalize
from training.zoo import load_classifier

FAMILIES = ["mobilenet_v2", "resnet18", "squeezenet1_1", "timm/tf_efficientnet_lite0", "vgg11_bn"]
MORE_FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v3_small", "regnet_x_400mf", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "vgg16",
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
    torch.manual_seed(1)
    classifier = load_classifier(architecture, pretrained=False)
    assert convolutionalize(classifier.net, classifier.input_size).certificate.relative_error < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MORE_FAMILIES)
def test_more_zoo_classifiers_convert(architecture: str) -> None:
    torch.manual_seed(1)
    classifier = load_classifier(architecture, pretrained=False)
    assert convolutionalize(classifier.net, classifier.input_size).certificate.relative_error < TOLERANCE


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


def test_dropout_still_drops_in_training() -> None:
    net = convolutionalize(seeded(lambda: Pooled(hidden_tail(16))), (64, 64)).net
    image = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(image), net(image))
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(net(image), net(image))


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


def test_dropout_in_place_does_not_spoil_the_gradient_of_what_it_now_follows() -> None:
    net = convolutionalize(
        seeded(lambda: Pooled(nn.Sequential(nn.Dropout(inplace=True), nn.Linear(16, 3)))), (64, 64)
    ).net
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
