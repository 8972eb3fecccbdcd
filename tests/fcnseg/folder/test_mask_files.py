from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import fcnseg
from fcnseg.errors import MaskError
from fcnseg.folder import FolderOptions, MaskFormat, mask_files, segment_folder
from fcnseg.types import ClassMap, LabelMap
from tests.image_folders import write_noise

few = LabelMap.from_names([f"class {i}" for i in range(7)])
many = LabelMap.from_names([f"class {i}" for i in range(300)])


@st.composite
def class_maps(draw: st.DrawFn) -> tuple[ClassMap, LabelMap]:
    label_map = draw(st.sampled_from([few, many]))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20))
    ids = st.integers(0, len(label_map) - 1)
    return draw(hnp.arrays(label_map.id_dtype, shape, elements=ids)), label_map


@settings(max_examples=60)
@given(class_maps(), st.sampled_from(MaskFormat))
def test_a_mask_comes_back_as_it_was_and_equal_masks_are_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, mask: tuple[ClassMap, LabelMap], mask_format: MaskFormat
) -> None:
    class_map, label_map = mask
    data = mask_files.encode(class_map, mask_format, label_map, "a.png")
    assert data == mask_files.encode(np.asfortranarray(class_map), mask_format, label_map, "a.png")
    path = tmp_path_factory.mktemp("mask") / f"mask{mask_format.suffix}"
    path.write_bytes(data)
    found = mask_files.read(path, mask_format, label_map)
    assert found.dtype == class_map.dtype
    assert np.array_equal(found, class_map)


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_what_is_no_mask_is_told_in_one_line(tmp_path: Path, mask_format: MaskFormat) -> None:
    with pytest.raises(MaskError, match="cannot be read"):
        mask_files.read(tmp_path / "none", mask_format, few)
    (tmp_path / "broken").write_bytes(b"{}")
    with pytest.raises(MaskError):
        mask_files.read(tmp_path / "broken", mask_format, few)


def test_a_tiff_shows_the_classes_colours(tmp_path: Path) -> None:
    class_map = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "a.tif").write_bytes(mask_files.encode(class_map, MaskFormat.TIFF, few, "a.png"))
    with Image.open(tmp_path / "a.tif") as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), few.palette[class_map])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_cocos_own_tools_read_the_data_set_of_a_job(tiny_model: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 5)
    (tmp_path / "in" / "002.png").write_bytes(b"broken")
    segmenter = fcnseg.load(tiny_model, "cpu")
    options = FolderOptions(mask_format=MaskFormat.COCO)
    results = list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    found = COCO(str(tmp_path / "out" / "coco.json"))
    assert [image["file_name"] for image in found.loadImgs(found.getImgIds())] == [
        "000.png", "001.png", "003.png", "004.png"
    ]  # fmt: skip
    assert [category["name"] for category in found.loadCats(found.getCatIds())] == ["red", "green", "blue"]
    done = [result for result in results if result.error is None]
    for image_id, result in zip(found.getImgIds(), done, strict=True):
        annotations = found.loadAnns(found.getAnnIds([image_id]))
        assert {a["category_id"]: a["area"] for a in annotations} == {a.info.id: a.pixels for a in result.classes}
        class_map = segmenter.segment(result.image).class_map
        for annotation in annotations:
            mask = found.annToMask(annotation)
            assert np.array_equal(mask, class_map == annotation["category_id"])
            assert list(coco_mask.toBbox(found.annToRLE(annotation))) == annotation["bbox"]
