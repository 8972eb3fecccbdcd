"""Heatmaps and regions of the real server are those of the file offline, and come only where they are asked for."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcnseg
from fcnseg.client import Client
from fcnseg.regions import RegionQuery, find_regions
from fcnseg.types import LabelMap
from fcnseg.v1 import segmentation_pb2 as pb
from fcnseg.v1.segmentation_pb2_grpc import SegmentationServiceStub
from serving.errors import OverloadedError
from serving.extras import reads_at_once
from serving.registry import ModelRegistry
from tests.image_folders import noise
from tests.running_server import CPU_CONFIG, running_server
from tests.tiny_model import write_tiny_model

THREE_PATCHES = np.zeros((8, 12, 3), np.uint8)
THREE_PATCHES[:, :4, 0] = THREE_PATCHES[:, 4:8, 1] = THREE_PATCHES[:, 8:, 2] = 200


@pytest.fixture
def client(tiny_model: Path) -> Iterator[Client]:
    with running_server(tiny_model) as server, Client(server.address) as client:
        yield client


@pytest.mark.parametrize("class_count", [3, 300])
def test_served_heatmaps_and_regions_equal_the_offline_ones_bit_for_bit(tmp_path: Path, class_count: int) -> None:
    path = write_tiny_model(tmp_path / "model.onnx", class_count=class_count)
    offline = fcnseg.load(path, "cpu", threads=1)
    geometry, label_map = offline.info.geometry, offline.info.label_map
    ids = st.lists(st.integers(0, class_count - 1), max_size=3, unique=True)

    @settings(max_examples=25)
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), ids, ids, st.floats(0.05, 0.95))
    def check(height: int, width: int, seed: int, shown: list[int], searched: list[int], threshold: float) -> None:
        image = noise(height, width, seed)
        query = RegionQuery(tuple(map(str, searched)), threshold, limit=50)
        answer = client.segment(image, heatmaps=[str(i) for i in shown], regions=query)
        expected = offline.segment(image)
        assert [heatmap.info for heatmap in answer.heatmaps] == [label_map.classes[i] for i in shown]
        for i, heatmap in zip(shown, answer.heatmaps, strict=True):
            assert heatmap.scores.dtype == heatmap.probabilities.dtype == np.float32
            np.testing.assert_array_equal(heatmap.scores, expected.heatmap[i])
            np.testing.assert_array_equal(heatmap.probabilities, expected.probabilities[i])
        assert answer.regions == find_regions(expected, geometry, query)
        assert answer.grid is not None
        for axis, where, cells in zip(
            (answer.grid.y, answer.grid.x), (geometry.y, geometry.x), expected.heatmap.shape[1:], strict=True
        ):
            assert (axis.cells, axis.stride) == (cells, where.stride)
            assert [axis.centre(i) for i in range(cells)] == [where.centre(i) for i in range(cells)]

    with running_server(path) as server, Client(server.address) as client:
        check()


def test_each_patch_of_colour_is_a_region_with_its_box(client: Client) -> None:
    regions = client.segment(THREE_PATCHES, regions=RegionQuery()).regions
    assert sorted((r.info.name, r.box.top, r.box.left, r.box.height, r.box.width) for r in regions) == [
        ("blue", 0, 8, 8, 4),
        ("green", 0, 4, 8, 4),
        ("red", 0, 0, 8, 4),
    ]
    assert all(r.info.colour[("red", "green", "blue").index(r.info.name)] == 255 for r in regions)


def test_names_in_any_case_and_ids_are_one_class_each_in_the_order_of_their_first_naming(client: Client) -> None:
    answer = client.segment(THREE_PATCHES, heatmaps=("BLUE", "2", "red"), regions=RegionQuery(("Red", "red ", "0")))
    assert [heatmap.info.name for heatmap in answer.heatmaps] == ["blue", "red"]
    assert [region.info.name for region in answer.regions] == ["red"]


def test_what_is_not_asked_for_is_not_answered(client: Client) -> None:
    plain = client.segment(THREE_PATCHES)
    assert (plain.heatmaps, plain.regions, plain.grid) == ((), (), None)
    shown = client.segment(THREE_PATCHES, heatmaps=("red",))
    assert (len(shown.heatmaps), shown.regions) == (1, ())
    searched = client.segment(THREE_PATCHES, regions=RegionQuery())
    assert (searched.heatmaps, len(searched.regions)) == ((), 3)
    assert plain.data == shown.data == searched.data


def test_a_query_left_empty_takes_the_defaults(tiny_model: Path) -> None:
    pixels = pb.RawImage(height=8, width=12, rgb=THREE_PATCHES.tobytes())
    request = pb.SegmentRequest(raw=pixels, regions=pb.RegionQuery())
    with running_server(tiny_model) as server, grpc.insecure_channel(server.address) as channel:
        response = SegmentationServiceStub(channel).Segment(request, timeout=20)
    assert sorted(region.info.name for region in response.regions) == ["blue", "green", "red"]


def test_the_limit_and_the_threshold_are_obeyed(client: Client) -> None:
    image = noise(60, 60)
    best = client.segment(image, regions=RegionQuery(threshold=0.6, limit=7)).regions
    assert len(best) == 7
    assert min(region.score for region in best) >= 0.6
    everything = client.segment(image, regions=RegionQuery(threshold=0.6, limit=1000)).regions
    assert best == everything[:7]
    large = client.segment(image, regions=RegionQuery(threshold=0.6, limit=1000, min_pixels=30)).regions
    assert large == tuple(region for region in everything if region.pixels >= 30)
    assert 0 < len(large) < len(everything)


@pytest.mark.parametrize("field", ["classes", "heatmap_classes", "regions"])
@pytest.mark.parametrize(
    ("names", "at_once"),
    [
        ([], True),
        (["class 7", " CLASS 8", "9"], True),
        (["class 7", "clas 8"], False),
        (["class 7" + " " * 200], False),
        ([f"class {k}" for k in range(100)], True),
        ([f"class {k}" for k in range(101)], False),
    ],
    ids=["none", "known", "unknown", "long", "few", "many"],
)
def test_a_few_names_that_are_known_are_read_without_waiting_for_a_thread(
    field: str, names: list[str], *, at_once: bool
) -> None:
    label_map = LabelMap.from_names([f"class {k}" for k in range(300)])
    request = pb.SegmentRequest()
    (request.regions.classes if field == "regions" else getattr(request, field)).extend(names)
    assert reads_at_once(request, label_map) is at_once


def test_what_answers_take_to_write_is_expected_of_those_with_the_same_extras_alone(tiny_model: Path) -> None:
    registry = ModelRegistry([tiny_model], CPU_CONFIG)
    model = registry.models[0]
    image = noise(600, 600)

    def expected_ms(*extras: str) -> float:
        """Return how long the server expects to write an answer."""
        with closing(model.admission.enter()) as first, closing(model.admission.enter()) as second:
            first.reserve(600, 600, 0, None, frozenset(extras))
            with pytest.raises(OverloadedError) as caught:
                second.reserve(600, 600, 0, 0, frozenset(extras))
        whole = re.search(r"would take about (\d+) ms", str(caught.value))
        assert whole
        return int(whole[1]) - 3000 * model.batcher.pace.cautious_seconds(600 * 600)

    with running_server(registry) as server, Client(server.address) as client:
        client.segment(image, heatmaps=["red"])
        client.segment(image, confidence=True)
        client.segment(image, overlay=True)
        client.segment(image, classes=["red"])
        assert abs(expected_ms()) < 1
        assert abs(expected_ms("regions")) < 1
        searched = client.segment(image, regions=RegionQuery(threshold=0.1))
        assert expected_ms("regions") > searched.timings.encode_ms / 2 > 1
        assert abs(expected_ms()) < 1
        plain = client.segment(image)
        assert plain.timings.encode_ms > 2
        assert expected_ms() > plain.timings.encode_ms / 2
