from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

import fcnseg
from fcnseg.segmenter import Segmenter
from tests.image_folders import noise


class Masks(Dataset[bytes]):
    """Masks computed where they are loaded."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> bytes:
        if index >= len(self):
            raise IndexError
        return self.segmenter.segment(noise(10, 12, index)).class_map.tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_data_loaders_workers_use_a_segmenter(tiny_model: Path, method: str) -> None:
    masks = Masks(fcnseg.load(tiny_model, "cpu", threads=1))
    loader = DataLoader(masks, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert list(loader) == list(masks)
