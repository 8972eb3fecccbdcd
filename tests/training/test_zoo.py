from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from training.zoo import load_classifier

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTIONS = ("googlenet", "inception_v3")


NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if "vit_" not in name]
# RegNets compute their widths with tensors, which meta tensors cannot, so that they are built with all their weights.
REGNETS = [name for name in NAMES if name.startswith("regnet")]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REGNETS])
def test_native_sizes_and_normalisations_are_those_of_torchvisions_weights(name: str) -> None:
    with torch.device("meta"):
        check_against_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGNETS)
def test_native_sizes_and_normalisations_of_regnets_are_those_of_torchvisions_weights(name: str) -> None:
    check_against_torchvision(name)


def check_against_torchvision(name: str) -> None:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    classifier = load_classifier(name, pretrained=False)
    assert classifier.input_size == (*transforms.crop_size, *transforms.crop_size)
    if name not in INCEPTIONS:  # those are below
        assert ([*classifier.mean], [*classifier.std]) == (transforms.mean, transforms.std)


@pytest.mark.parametrize("name", INCEPTIONS)
def test_nets_that_normalise_anew_when_pretrained_take_the_same_pixels_either_way(name: str) -> None:
    """torchvision turns ImageNet's normalisation into halves within these two, with its own weights alone."""
    torch.manual_seed(0)
    classifier = load_classifier(name, pretrained=False)
    own = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True).eval()
    own.load_state_dict(classifier.net.state_dict())
    pixels = torch.rand(2, 3, *classifier.input_size)
    with torch.no_grad():
        expected = own(normalised(pixels, *IMAGENET))
        found = classifier.net(normalised(pixels, classifier.mean, classifier.std))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def normalised(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_classes_are_counted_in_the_net_and_not_in_what_lies_beside_it(tmp_path: Path) -> None:
    net = torchvision.models.squeezenet1_1(num_classes=5)
    module = nn.ModuleDict({"model": net, "auxiliary": nn.Linear(512, 2)})
    torch.save({"state_dict": module.state_dict()}, tmp_path / "weights.ckpt")
    classifier = load_classifier("squeezenet1_1", weights=tmp_path / "weights.ckpt")
    assert classifier.num_classes == 5
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in classifier.net.state_dict().items())
