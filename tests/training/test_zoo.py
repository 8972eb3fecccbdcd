import pytest
import torch
import torchvision

from training.zoo import load_classifier

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
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
