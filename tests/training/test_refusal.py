"""Transformers are known by what their attentions compute, not by what these are named."""

import pytest
import timm
import torch
from torch import Tensor, nn

from fcnseg.errors import ArchitectureError
from tests.training.small_nets import seeded
from training.conversion import convolutionalize
from training.refusal import refuse_transformers


class ChannelAttention(nn.Module):
    """The first of CBAM's gates."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.average, self.maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.shared = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.shared(self.average(x)) + self.shared(self.maximum(x)))


class SpatialAttention(nn.Module):
    """The second of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        maximum, _ = x.max(dim=1, keepdim=True)
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(dim=1, keepdim=True), maximum], dim=1)))


class SelfAttention(nn.Module):
    """Attention over all cells, with the weights named by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.queries, self.keys = nn.Conv2d(64, 8, 1), nn.Conv2d(64, 8, 1)
        self.scale = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.queries(x).flatten(2), self.keys(x).flatten(2)
        if self.kind == "product":
            weights = queries.transpose(1, 2) @ keys
        elif self.kind == "einsum":
            weights = torch.einsum("ncq,nck->nqk", queries, keys)
        elif self.kind == "softmax":
            weights = queries.softmax(-1)
        else:
            weights = self.scale(queries)
        return x * weights.mean()


def resnet_with(*gates: nn.Module) -> nn.Module:
    net = timm.create_model("resnet10t", num_classes=7)
    net.layer1 = nn.Sequential(net.layer1, *gates)
    return net


def test_a_net_with_gates_that_are_named_attention_is_converted() -> None:
    net = seeded(lambda: resnet_with(ChannelAttention(64), SpatialAttention()))
    certificate = convolutionalize(net, (64, 64)).certificate
    assert certificate.global_context
    assert all(name.startswith("layer1.1") for name in certificate.global_context)


@pytest.mark.parametrize("kind", ["product", "einsum", "softmax", "softmax layer"])
def test_attention_of_ones_own_is_refused(kind: str) -> None:
    with pytest.raises(ArchitectureError, match=r"ResNet is a transformer: layer1\.1 attends"):
        refuse_transformers(resnet_with(SelfAttention(kind)))


def test_a_module_that_cannot_be_followed_is_taken_for_what_it_is_named() -> None:
    class BranchingAttention(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ArchitectureError, match=r"layer1\.1 attends"):
        refuse_transformers(resnet_with(BranchingAttention(64, 64, 1)))


@pytest.mark.parametrize(
    "name",
    ["levit_128s", "efficientvit_m0", "pvt_v2_b0", "mobilevit_xxs", "mobilevitv2_050", "swiftformer_xs", "davit_tiny"],
)
def test_transformers_without_position_embeddings_are_refused(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.raises(ArchitectureError, match="attends over a partition"):
        refuse_transformers(net)
