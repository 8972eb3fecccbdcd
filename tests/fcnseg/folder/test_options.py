from typing import Any

import pytest

from fcnseg.errors import UsageError
from fcnseg.folder import FolderOptions, MaskFormat


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ({"top": -1}, "top is -1; it must be at least 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"batch": -1}, "batch is -1; it must be at least 0"),
        ({"in_flight": 0}, "in_flight is 0; it must be at least 1"),
        ({"memory_bytes": 0}, "memory_bytes is 0; it must be at least 1"),
        ({"tile": 0}, "tiles of 0 pixels were asked for; they must have at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(number: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FolderOptions(**number)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"mask_format": "gif"}, "there is no mask format 'gif'; there are png, tiff, npy, coco"),
        ({"tile": "512"}, "tile is '512'; it must be 'auto', 'none' or a number of pixels"),
        ({"tile": [512]}, "tile is \\[512\\]"),
        ({"regions": True}, "regions is True; give a RegionQuery, or None for no list"),
    ],
)
def test_what_options_cannot_mean_is_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FolderOptions(**option)


def test_a_mask_format_may_be_given_as_text() -> None:
    assert FolderOptions(mask_format="tiff").mask_format is MaskFormat.TIFF  # type: ignore[arg-type]
