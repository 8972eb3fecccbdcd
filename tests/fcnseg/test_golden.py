"""The model file that was made when its format was: whatever changes, it loads and gives the mask it gave then."""

from pathlib import Path

import numpy as np
import pytest

import fcnseg
from fcnseg import Client, Encoding, masks
from fcnseg.model_file import read_model_info
from fcnseg.types import ClassMap
from tests.running_server import running_server

GOLDEN = Path(__file__).parent.parent / "golden"
MODEL, SCENE = GOLDEN / "scenes-fcn8s.onnx", GOLDEN / "scene.png"
CLASSES = ["background", "disc", "triangle", "ring", "cross"]


@pytest.fixture(scope="module")
def mask() -> ClassMap:
    return masks.read_ids(GOLDEN / "mask.png")


def agreement(class_map: ClassMap, mask: ClassMap) -> float:
    """The share of equal pixels; another onnxruntime may round a score across a border."""
    assert class_map.dtype == mask.dtype
    return float(np.mean(class_map == mask))


def test_it_is_described_as_it_was() -> None:
    info = read_model_info(MODEL)
    assert (info.format, info.variant, info.architecture) == (1, "fcn8s", "small_net.py:SmallNet")
    assert [c.name for c in info.label_map.classes] == CLASSES
    assert info.label_map.hash == "22f62b72505878968d7ea14b468a390c5998e264fc4dca454a4417d6d324cb96"
    assert (info.geometry.y.stride, info.geometry.x.alignment) == (8, 32)
    assert info.card is not None
    assert info.card.epoch == 15


def test_it_gives_the_mask_that_it_gave(mask: ClassMap) -> None:
    assert len(np.unique(mask)) > 2
    assert agreement(fcnseg.load(MODEL, "cpu").segment(SCENE).class_map, mask) > 0.999


def test_it_is_served_in_every_encoding(mask: ClassMap) -> None:
    with running_server(MODEL) as server, Client(server.address) as client:
        for encoding in Encoding:
            assert agreement(client.segment(SCENE, encoding=encoding).class_map, mask) > 0.999
