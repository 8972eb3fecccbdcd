"""Data augmentation: random scale, crop, mirroring and brightness, with image and mask aligned to the pixel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from training.samples import Sample, read_sample

_PADDING_GREY = 128


class TrainingCrops(Dataset[tuple[Tensor, Tensor]]):
    """A data set of randomly scaled, cropped, mirrored and colour-jittered samples.

    Item i is (image, mask): (3, h, w) uint8 RGB, and (h, w) int64 ids. Where a crop extends beyond its image, the mask
    is `ignored`. The random generator is torch's, which a data loader seeds in each worker.

    Args:
        samples: The images and masks to crop from.
        ignored: The value for pixels without a label.
        crop: (height, width) in pixels, the same for images of any size; None takes whole images.
        scale_jitter: Range of the factor by which an image is resized before the crop.
        flip: Whether half of the images are mirrored, left to right.
        colour_jitter: Largest relative change of brightness, contrast and saturation.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        ignored: int,
        *,
        crop: tuple[int, int] | None,
        scale_jitter: tuple[float, float] = (1.0, 1.0),
        flip: bool = False,
        colour_jitter: float = 0.0,
    ) -> None:
        self._samples = samples
        fill = {tv_tensors.Image: _PADDING_GREY, tv_tensors.Mask: ignored}
        steps: list[Any] = []
        if scale_jitter != (1.0, 1.0):
            steps.append(RandomScale(*scale_jitter))
        if crop is not None:
            steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if colour_jitter:
            steps.append(v2.ColorJitter(brightness=colour_jitter, contrast=colour_jitter, saturation=colour_jitter))
        self._augment = v2.Compose(steps or [v2.Identity()])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = read_sample(self._samples[index])
        pair = (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(mask).short()),  # signed, since -1 may mark pixels without a label
        )
        cropped_image, cropped_mask = self._augment(*pair)
        return cropped_image.as_subclass(Tensor), cropped_mask.as_subclass(Tensor).long()


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """A data set of unchanged samples, each at its own size.

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
    """Resize by a factor drawn log-uniformly from a range: masks by nearest neighbour, images bilinearly.

    Args:
        smallest: The smallest factor.
        largest: The largest factor.
    """

    def __init__(self, smallest: float, largest: float) -> None:
        super().__init__()
        self._range = (smallest, largest)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size to which both image and mask are resized."""
        low, high = torch.tensor(self._range).log()
        factor = (low + (high - low) * torch.rand(())).exp().item()
        height, width = v2.functional.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image or mask."""
        if isinstance(inpt, tv_tensors.Mask):
            # The NEAREST mode, the default for masks, is off by up to half a pixel.
            exact = InterpolationMode.NEAREST_EXACT
            resized = v2.functional.resize_image(inpt.as_subclass(Tensor)[None], params["size"], interpolation=exact)[0]
            return tv_tensors.wrap(resized, like=inpt)
        return v2.functional.resize(inpt, params["size"], antialias=True)
