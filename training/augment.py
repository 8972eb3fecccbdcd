"""Training samples: an image and its mask, scaled, cropped, mirrored and lit at random, aligned to the pixel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from training.data import Sample, read_sample

_PADDING_GREY = 128
_JITTER = 0.25


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random square crops of the samples, all of one size whatever the images' sizes.

    Item i is (image, mask): (3, crop, crop) uint8 RGB, and (crop, crop) int64 ids. Where a crop reaches beyond its
    image, the mask has `ignore_id`. The randomness is torch's, which a loader seeds in each of its workers.

    Args:
        samples: What to crop from.
        crop: Height and width in pixels.
        ignore_id: The value for pixels without a label.
        scale_jitter: Range of the factor by which an image is resized first.
    """

    def __init__(self, samples: Sequence[Sample], crop: int, ignore_id: int, scale_jitter: tuple[float, float]) -> None:
        self._samples = samples
        fill = {tv_tensors.Image: _PADDING_GREY, tv_tensors.Mask: ignore_id}
        self._augment = v2.Compose(
            [
                RandomScale(*scale_jitter),
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=_JITTER, contrast=_JITTER, saturation=_JITTER),
            ]
        )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = read_sample(self._samples[index])
        pair = (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(mask).long()),
        )
        cropped_image, cropped_mask = self._augment(*pair)
        return cropped_image.as_subclass(Tensor), cropped_mask.as_subclass(Tensor)


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """The samples as they are, each at its own size.

    Item i is (image, mask): (H, W, 3) uint8 RGB, and (H, W) uint8 ids.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = read_sample(self._samples[index])
        return torch.from_numpy(image), torch.from_numpy(mask)


class RandomScale(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """Resize by a factor drawn log-uniformly from a range: masks by nearest, images bilinearly.

    Args:
        smallest: Least factor.
        largest: Greatest factor.
    """

    def __init__(self, smallest: float, largest: float) -> None:
        super().__init__()
        self._range = (smallest, largest)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size that image and mask are both resized to."""
        low, high = torch.tensor(self._range).log()
        factor = (low + (high - low) * torch.rand(())).exp().item()
        height, width = v2.functional.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image or mask."""
        if isinstance(inpt, tv_tensors.Mask):
            # The plain nearest mode that masks get by default is off by up to half a pixel.
            exact = InterpolationMode.NEAREST_EXACT
            resized = v2.functional.resize_image(inpt.as_subclass(Tensor)[None], params["size"], interpolation=exact)[0]
            return tv_tensors.wrap(resized, like=inpt)
        return v2.functional.resize(inpt, params["size"], antialias=True)
