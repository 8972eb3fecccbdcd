import itertools
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnseg.errors import UsageError
from fcnseg.folder import MaskFormat, Plan, plan
from fcnseg.folder.names import name_masks
from fcnseg.folder.plan import require_room
from fcnseg.pictures import Pictures
from fcnseg.types import LabelMap
from tests.image_folders import save, touch


def planned_names(source: Path | str, output: Path) -> dict[str, str]:
    return {item.name: item.mask for item in plan(source, output).images}


def mask_of(found: Plan) -> Path:
    return found.output / found.images[0].mask


def test_the_output_mirrors_the_tree_and_only_images_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.JPG", "b/c.v2.tiff", "b/d/e.webp", "f.bmp", ".hidden.png", ".git/g.png", "notes.txt", "h")
    assert planned_names(tmp_path / "in", tmp_path / "out") == {
        "a.JPG": "a.png",
        "b/c.v2.tiff": "b/c.v2.png",
        "b/d/e.webp": "b/d/e.png",
        "f.bmp": "f.png",
    }


def test_images_that_would_share_a_mask_keep_their_full_names(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.png", "b.jpg", "sub/a.jpg", "C.jpg", "c.webp")
    assert planned_names(tmp_path / "in", tmp_path / "out") == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "b.jpg": "b.png",
        "sub/a.jpg": "sub/a.png",
        "C.jpg": "C.jpg.png",
        "c.webp": "c.webp.png",
    }


def test_full_names_that_clash_in_turn_are_lengthened_too(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.bmp", "a.jpg.tif", "a.jpg.tif.bmp")
    names = planned_names(tmp_path / "in", tmp_path / "out")
    assert len(set(names.values())) == 4
    assert names["a.jpg"] == "a.jpg.png"
    assert names["a.jpg.tif"] == "a.jpg.tif.png"


def test_the_output_inside_the_input_is_not_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "masks/a.png", "masks/sub/b.png", "masks2/c.png")
    assert planned_names(tmp_path, tmp_path / "masks") == {"a.jpg": "a.png", "masks2/c.png": "masks2/c.png"}


def test_a_single_image_may_name_a_folder_or_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "odd.name")
    (tmp_path / "x.png").mkdir()
    assert mask_of(plan(tmp_path / "a.jpg", tmp_path / "out")) == tmp_path / "out" / "a.png"
    assert mask_of(plan(tmp_path / "a.jpg", tmp_path / "out" / "mask.png")) == tmp_path / "out" / "mask.png"
    assert mask_of(plan(tmp_path / "a.jpg", tmp_path / "x.png")) == tmp_path / "x.png" / "a.png"
    assert mask_of(plan(tmp_path / "odd.name", tmp_path / "out")) == tmp_path / "out" / "odd.png"


@pytest.mark.parametrize("name", ["mask.png", "mask.TIFF", "coco.json", "mask.jpg"])
def test_the_masks_of_a_folder_do_not_go_to_what_is_named_as_a_file(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "in", "a.jpg")
    with pytest.raises(UsageError, match=rf"{name} is named as a file.*; name a folder for the masks"):
        plan(tmp_path / "in", tmp_path / name)
    (tmp_path / name).mkdir()
    assert plan(tmp_path / "in", tmp_path / name).output == tmp_path / name
    assert plan(tmp_path / "in", tmp_path / "masks.v2").output == tmp_path / "masks.v2"


def test_nothing_to_do_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(
        UsageError,
        match=r"no images in .*in; looked, .* behind links to folders, for files ending in \.jpg, \.jpeg",
    ):
        plan(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match="nix does not exist"):
        plan(tmp_path / "nix", tmp_path / "out")


def test_a_mask_never_takes_the_place_of_an_image(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/b.jpg", "file.txt")
    with pytest.raises(UsageError, match="is the input folder"):
        plan(tmp_path / "in", tmp_path / "in" / ".." / "in")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "in" / "a.png", tmp_path / "in")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "in" / "a.png", tmp_path / "in" / "a.png")
    with pytest.raises(UsageError, match=r"file\.txt is a file"):
        plan(tmp_path / "in", tmp_path / "file.txt")


def test_an_input_inside_the_output_is_safe_from_its_masks(tmp_path: Path) -> None:
    touch(tmp_path, "out/in/a.png", "out/in/in/a.jpg")
    with pytest.raises(UsageError, match="would take the place of an input image"):
        plan(tmp_path / "out" / "in", tmp_path / "out")


def test_a_mask_named_as_a_folder_of_masks_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.jpg", "a.png/sub/b.jpg")
    with pytest.raises(UsageError, match=r"a\.png would be both the mask of .*a\.jpg and a folder of masks"):
        plan(tmp_path / "in", tmp_path / "out")


def test_a_pattern_may_match_what_lies_below_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/masks/old.jpg")
    monkeypatch.chdir(tmp_path)
    assert [item.mask for item in plan("photos/*.jpg", Path()).images] == ["a.png"]
    assert [item.mask for item in plan("photos/**/*.jpg", Path("photos/masks")).images] == ["a.png"]
    with pytest.raises(UsageError, match="output photos is the input folder"):
        plan("photos/*.jpg", Path("photos"))


def test_an_empty_name_does_not_stand_for_the_folder_that_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "1.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="the input's name is empty"):
        plan("", tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "in" / "b.png")
    assert list(planned_names(tmp_path / "in", tmp_path / "out")) == ["a.png"]
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        plan(tmp_path / "in" / "b.png", tmp_path / "out")


def test_a_pattern_names_images_below_what_is_fixed_in_it(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a/1.jpg", "a/b/2.jpg", "a/b/2.png", "a/.hidden.jpg", "c/3.jpg", "notes.txt")
    assert planned_names(f"{tmp_path}/in/**/*.jpg", tmp_path / "out") == {
        "a/1.jpg": "a/1.png",
        "a/b/2.jpg": "a/b/2.png",
        "c/3.jpg": "c/3.png",
    }
    assert list(planned_names(f"{tmp_path}/in/a/*/*", tmp_path / "out")) == ["b/2.jpg", "b/2.png"]
    with pytest.raises(UsageError, match=r"no images match .*\*\.gif"):
        plan(f"{tmp_path}/in/*.gif", tmp_path / "out")


def test_links_that_lead_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    """Each folder holds links to both: their paths double with every step down."""
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    for folder, other in itertools.product("ab", "ab"):
        (tmp_path / folder / other).symlink_to(tmp_path / other, target_is_directory=True)
    expected = {"a/1.jpg": "a/1.png", "b/2.jpg": "b/2.png"}
    assert planned_names(f"{tmp_path}/**/*.jpg", tmp_path / "out") == expected
    assert planned_names(f"{tmp_path}/**", tmp_path / "out") == expected
    assert planned_names(tmp_path, tmp_path / "out") == expected
    assert list(planned_names(f"{tmp_path}/a/b/*.jpg", tmp_path / "out")) == ["2.jpg"]


def test_a_link_to_itself_is_one_image_and_ends_no_job(tmp_path: Path) -> None:
    touch(tmp_path / "in", "1.jpg")
    (tmp_path / "in" / "2.jpg").symlink_to("2.jpg")
    for source in (tmp_path / "in", tmp_path / "in" / "*.jpg"):
        assert planned_names(source, tmp_path / "in" / "out") == {"1.jpg": "1.png", "2.jpg": "2.png"}
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        assert len(planned_names(source, tmp_path / "loop")) == 2


def test_a_pattern_may_have_any_folders_more_than_once_and_begin_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "in", "1.jpg", "a/2.jpg", "a/x/3.jpg", "a/x/[b]/4.jpg", ".git/x/5.jpg")
    monkeypatch.chdir(tmp_path / "in")
    assert list(planned_names("**/x/**/*.jpg", tmp_path / "out")) == ["a/x/3.jpg", "a/x/[b]/4.jpg"]
    assert [item.image for item in plan("**/*.jpg", tmp_path / "out").images] == [
        "1.jpg",
        "a/2.jpg",
        "a/x/3.jpg",
        "a/x/[b]/4.jpg",
    ]


@pytest.mark.parametrize("pattern", ["", "/**/*.jpg"])
def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, pattern: str) -> None:
    """Images in it would be left out without a word. A path that is too long stands in for rights, which root has."""
    touch(tmp_path / "in", "1.jpg")
    name = "d" * 200
    with ExitStack() as stack:
        folder = os.open(tmp_path / "in", os.O_RDONLY)
        stack.callback(os.close, folder)
        for _ in range(os.pathconf(tmp_path, "PC_PATH_MAX") // len(name) + 1):
            os.mkdir(name, dir_fd=folder)
            folder = os.open(name, os.O_RDONLY, dir_fd=folder)
            stack.callback(os.close, folder)
    with pytest.raises(UsageError, match=r"folder .*ddd cannot be read: File name too long; let this user read it"):
        plan(f"{tmp_path}/in{pattern}", tmp_path / "out")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png")
    assert plan(tmp_path / "a[1].png", tmp_path / "out").single


def test_a_list_names_images_relative_to_its_folder_in_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.jpg", "in/a/c.tif", "elsewhere/d.png")
    (tmp_path / "in" / "list.txt").write_bytes(b"b.jpg\r\n\n  a/c.tif  \nmissing.png\nb.jpg\n")
    found = planned_names(tmp_path / "in" / "list.txt", tmp_path / "out")
    assert list(found.items()) == [("b.jpg", "b.png"), ("a/c.tif", "a/c.png"), ("missing.png", "missing.png")]
    (tmp_path / "in" / "list.txt").write_text(f"b.jpg\n{tmp_path}/elsewhere/d.png\n")
    assert list(planned_names(tmp_path / "in" / "list.txt", tmp_path / "out")) == ["in/b.jpg", "elsewhere/d.png"]
    (tmp_path / "in" / "list.txt").write_bytes(b"\xef\xbb\xbfb.jpg\r\n")  # as Windows' editor marks UTF-8
    assert list(planned_names(tmp_path / "in" / "list.txt", tmp_path / "out")) == ["b.jpg"]
    (tmp_path / "in" / "list.txt").write_text("\n")
    with pytest.raises(UsageError, match="names no image"):
        plan(tmp_path / "in" / "list.txt", tmp_path / "out")
    (tmp_path / "in" / "list.txt").write_bytes(b"b.jpg\0a/c.tif\0")  # as find -print0 writes it
    with pytest.raises(UsageError, match=r"list .*list\.txt holds a zero byte, which no path has"):
        plan(tmp_path / "in" / "list.txt", tmp_path / "out")


def test_a_mask_does_not_take_the_name_of_the_jobs_own_files(tmp_path: Path) -> None:
    touch(tmp_path / "in", "coco.jpg", "fcnseg.png", "a.jpg")
    found = plan(tmp_path / "in", tmp_path / "out", MaskFormat.COCO)
    assert [item.mask for item in found.images] == ["a.json", "coco.jpg.json", "fcnseg.png.json"]


def test_pictures_and_masks_have_names_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.png", "a.confidence.jpg")
    found = plan(tmp_path / "in", tmp_path / "out")
    label_map = LabelMap.from_names(["one"])
    require_room(found, Pictures(overlay=True), label_map)
    with pytest.raises(UsageError, match=r"a\.confidence\.png would be both a mask and a picture"):
        require_room(found, Pictures(confidence=True), label_map)


names = st.lists(
    st.tuples(st.sampled_from(["", "a/", "A/"]), st.sampled_from(["x", "X", "x.jpg", "x.png", "x.jpg.png", "coco"]),
              st.sampled_from(["", ".jpg", ".png", ".TIF", ".json"])).map("".join), unique=True, max_size=12,
)  # fmt: skip


@given(names, st.sampled_from([".png", ".json", ".npy"]))
def test_every_image_has_a_mask_of_its_own(given_names: list[str], suffix: str) -> None:
    try:
        masks = name_masks(given_names, suffix)
    except UsageError as error:
        assert "two inputs have one mask" in str(error)  # noqa: PT017
        return
    assert len(set(masks)) == len(given_names)
    assert all(mask.endswith(suffix) for mask in masks)
    assert all(mask.startswith(name.rpartition(".")[0] or name) for name, mask in zip(given_names, masks, strict=True))
