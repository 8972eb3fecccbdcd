import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fcnseg.errors import DatasetError, UsageError
from fcnseg.types import voc_colour
from training.commands.check import check
from training.commands.train import train
from training.doctor import NEAR_BITS, Finding, diagnose, near_pairs
from training.doctor_page import to_html

SIZE = (48, 64)
NAMES = ("ground", "thing", "other")
COLOURS = ((10, 20, 30), (200, 100, 0), (0, 90, 210))


def picture(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Smooth random colours, which no other seed resembles."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(cells, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.uint8)


def some_ids(ids: Sequence[int] = (0, 1, 2), size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """As many pixels of each id, to within one."""
    return np.resize(np.array(ids, np.uint8), size)


def save(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(root: Path, names: Sequence[str] = NAMES, **content: object) -> None:
    (root / "classes.json").write_text(json.dumps({"names": list(names), **content}))


def write_data(root: Path, ids: Sequence[int] = (0, 1, 2)) -> Path:
    """Two training images and a validation image, all different, with masks of the given ids; three classes."""
    for seed, name in enumerate("abc"):
        save(root / "images" / f"{name}.png", picture(seed))
        save(root / "masks" / f"{name}.png", some_ids(ids))
    (root / "train.txt").write_text("a\nb\n")
    (root / "val.txt").write_text("c\n")
    write_classes(root)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def findings(root: Path) -> dict[tuple[str, str | None], Finding]:
    """What the doctor finds, by kind and split."""
    found = diagnose(root).findings
    by_kind = {(finding.kind, finding.split): finding for finding in found}
    assert len(by_kind) == len(found)
    return by_kind


def only(root: Path, kind: str, split: str | None = "train", severity: str = "error") -> tuple[str, ...]:
    """The messages of the one error, or warning, that the doctor finds, each of one line."""
    found = {place: finding for place, finding in findings(root).items() if finding.severity == severity}
    assert set(found) == {(kind, split)}
    messages = found[kind, split].messages
    assert not any("\n" in message for message in messages)
    return messages


def run_check(root: Path, *options: str | Path) -> Result:
    result = CliRunner().invoke(check, [str(root), *map(str, options)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_train(root: Path, run: Path) -> Result:
    """Train with a net that does not exist, so that what comes behind the examination fails."""
    return CliRunner().invoke(train, [str(root), "--backbone", "no_such_net", "-o", str(run)])


def test_nothing_is_found_in_a_sound_folder(data: Path) -> None:
    assert findings(data) == {}
    result = run_check(data)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "0 errors, 0 warnings"


@pytest.mark.parametrize("length", [0, 9, 500])
def test_an_image_that_cannot_be_read_is_named_with_the_remedy(data: Path, length: int) -> None:
    path = data / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:length])
    (message,) = only(data, "unreadable image")
    assert str(path) in message
    assert "take it out of the data" in message
    assert diagnose(data).contents["train"].images == 1


@pytest.mark.parametrize("length", [0, 9, 60])
def test_a_mask_that_cannot_be_read_is_named(data: Path, length: int) -> None:
    path = data / "masks" / "b.png"
    path.write_bytes(path.read_bytes()[:length])
    (message,) = only(data, "unreadable mask")
    assert str(path) in message


def test_a_mask_that_is_not_turned_with_its_image_is_told(data: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(data / "images" / "c.png") as image:
        image.load()
        image.save(data / "images" / "c.png", exif=turned)
    (message,) = only(data, "sizes differ", "val")
    path = data / "masks" / "c.png"
    assert message == (
        f"mask {path} is 64x48 but its image c.png is 48x64 as its EXIF orientation turns it; turn the mask too, or"
        " store the image as it is to be seen"
    )


def test_a_mask_of_another_size_is_told_with_both_sizes(data: Path) -> None:
    path = save(data / "masks" / "c.png", some_ids(size=(24, 32)))
    (message,) = only(data, "sizes differ", "val")
    assert message == f"mask {path} is 32x24 but its image c.png is 64x48; give both one size"


def test_ids_outside_the_classes_are_told_with_their_pixels_and_the_remedy(data: Path) -> None:
    ids = some_ids()
    ids[0, :4], ids[1, 0] = 7, 9
    path = save(data / "masks" / "a.png", ids)
    (message,) = only(data, "unknown ids")
    assert message == (
        f"mask {path} has ids 7, 9 on 5 pixels where the classes are 0 to 2 and 255 for no label; correct the mask or"
        " classes.json"
    )


def test_of_many_unknown_ids_the_first_five_are_told(data: Path) -> None:
    save(data / "masks" / "a.png", some_ids(range(20)))
    (message,) = only(data, "unknown ids")
    assert "has ids 3, 4, 5, 6, 7, ... on" in message


def test_0_255_masks_are_recognised_where_255_is_no_id_at_all(data: Path) -> None:
    write_classes(data, void=2)
    for name in "abc":
        save(data / "masks" / f"{name}.png", some_ids((0, 255)))
    messages = findings(data)["0/255 binary", "train"].messages
    assert len(messages) == 2
    assert "has ids 255 on 1536 pixels" in messages[0]
    assert "write 1 for 255" in messages[0]


def test_0_255_masks_are_recognised_where_255_would_silently_be_no_label(data: Path) -> None:
    write_classes(data, ["ground", "thing"])
    for name in "abc":
        save(data / "masks" / f"{name}.png", some_ids((0, 255)))
    found = findings(data)
    assert found["0/255 binary", "train"].severity == "error"
    train_messages, val_messages = (found["0/255 binary", split].messages for split in ("train", "val"))
    assert [Path(message.split()[1]).name for message in (*train_messages, *val_messages)] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert all("255 counts as no label; write 1 for 255" in message for message in (*train_messages, *val_messages))


def test_0_255_masks_without_classes_json_are_refused_as_such(data: Path) -> None:
    (data / "classes.json").unlink()
    for name in "abc":
        save(data / "masks" / f"{name}.png", some_ids((0, 255)))
    with pytest.raises(DatasetError, match=r"hold no class but 0 \(0/255 binary masks\? write 1 for 255\)"):
        run_check(data)


def test_masks_that_no_class_can_be_read_from_are_told_as_such_where_the_classes_are_counted(data: Path) -> None:
    (data / "classes.json").unlink()
    for name in "abc":
        save(data / "masks" / f"{name}.png", np.array(COLOURS, np.uint8)[some_ids()])
    with pytest.raises(DatasetError, match=r"a\.png is drawn in colours.*\(1 more of 2 training masks cannot"):
        run_check(data)


def test_255_for_no_label_in_masks_of_two_classes_is_no_fault(data: Path) -> None:
    write_classes(data, ["ground", "thing"])
    for name in "abc":
        save(data / "masks" / f"{name}.png", some_ids((0, 1, 255)))
    assert findings(data) == {}


def test_palette_colours_made_grey_are_recognised(data: Path) -> None:
    write_classes(data, palette_rgb=COLOURS)
    rgb = np.array(COLOURS, np.uint8)[some_ids()]
    save(data / "masks" / "a.png", np.asarray(Image.fromarray(rgb).convert("L")))
    save(data / "masks" / "b.png", cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.uint8))
    messages = only(data, "unknown ids")
    assert len(messages) == 2
    assert all("colours made grey; save palette indices instead" in message for message in messages)


def test_vocs_palette_made_grey_is_recognised_with_its_outlines(data: Path) -> None:
    rgb = np.array([voc_colour(0), voc_colour(1), voc_colour(2), (224, 224, 192)], np.uint8)[some_ids((0, 1, 2, 3))]
    save(data / "masks" / "a.png", np.asarray(Image.fromarray(rgb).convert("L")))
    (message,) = only(data, "unknown ids")
    assert "has ids 38, 75, 220 on" in message
    assert "made grey" in message


def test_ids_that_are_no_greys_of_the_palette_get_no_such_hint(data: Path) -> None:
    save(data / "masks" / "a.png", some_ids((0, 38, 76, 77)))
    (message,) = only(data, "unknown ids")
    assert "made grey" not in message


def test_masks_in_colours_are_refused_where_nothing_tells_whose_they_are(data: Path) -> None:
    path = save(data / "masks" / "a.png", np.array(COLOURS, np.uint8)[some_ids()])
    (message,) = only(data, "unreadable mask")
    assert str(path) in message
    assert "is drawn in colours" in message
    assert "palette_rgb" in message
    write_classes(data, palette_rgb=COLOURS)
    assert findings(data) == {}


def test_a_colour_that_is_no_classs_is_told_with_its_place(data: Path) -> None:
    write_classes(data, palette_rgb=COLOURS)
    rgb = np.array(COLOURS, np.uint8)[some_ids()]
    rgb[3, 5] = 1, 2, 3
    save(data / "masks" / "a.png", rgb)
    (message,) = only(data, "unreadable mask")
    assert "the colour (1, 2, 3) at row 3, column 5" in message


def test_classes_that_no_mask_has_are_warned_of_for_each_split(data: Path) -> None:
    for name in "ab":
        save(data / "masks" / f"{name}.png", some_ids((0, 1)))
    save(data / "masks" / "c.png", some_ids((0, 2)))
    found = findings(data)
    assert set(found) == {("class never seen", "train"), ("class never seen", "val")}
    assert {finding.severity for finding in found.values()} == {"warning"}
    (in_train,), (in_val,) = (finding.messages for finding in found.values())
    assert in_train.startswith("no train mask has the class other, which cannot be learned")
    assert in_val.startswith("no val mask has the class thing, which cannot be measured")


def test_a_split_that_is_mostly_without_labels_is_warned_of(data: Path) -> None:
    save(data / "masks" / "c.png", some_ids((0, 1, 2, *[255] * 9)))
    (message,) = only(data, "mostly no label", "val", severity="warning")
    assert message.startswith("75% of the val pixels have id 255")


@pytest.mark.parametrize(("split", "masks"), [("train", "ab"), ("val", "c")])
def test_a_split_without_any_label_is_an_error_and_told_before_an_earlier_run_is_replaced(
    data: Path, tmp_path: Path, split: str, masks: str
) -> None:
    for name in masks:
        save(data / "masks" / f"{name}.png", some_ids((255,)))
    (message,) = only(data, "no label at all", split)
    assert message.startswith(f"no pixel of the {split} masks has a class: all have id 255, which counts as no label;")
    kept = tmp_path / "run" / "best.ckpt"
    kept.parent.mkdir()
    kept.write_bytes(b"weights")
    result = CliRunner().invoke(
        train, [str(data), "--backbone", "squeezenet1_1", "--no-pretrained", "--overwrite", "-o", str(kept.parent)]
    )
    assert isinstance(result.exception, DatasetError)
    assert str(result.exception) == message
    assert kept.read_bytes() == b"weights"


def test_a_test_split_may_be_without_any_label_as_that_of_cityscapes_is(data: Path) -> None:
    save(data / "images" / "d.png", picture(3))
    save(data / "masks" / "d.png", some_ids((255,)))
    (data / "test.txt").write_text("d\n")
    assert {(f.kind, f.split, f.severity) for f in diagnose(data).findings} == {
        ("class never seen", "test", "warning"),
        ("mostly no label", "test", "warning"),
    }


def test_the_share_of_each_class_is_told_for_each_split(data: Path) -> None:
    save(data / "masks" / "b.png", some_ids((1, 1, 2, 255)))
    contents = diagnose(data).contents["train"]
    pixels = SIZE[0] * SIZE[1]
    assert contents.class_pixels == (pixels // 3, pixels // 3 + pixels // 2, pixels // 3 + pixels // 4)
    assert contents.ignored_pixels == pixels // 4
    lines = run_check(data).stdout.splitlines()
    assert lines[0].split() == ["class", "train", "(2", "images)", "val", "(1", "images)"]
    assert [line.split() for line in lines[1:4]] == [
        ["ground", "19.05%", "33.33%"],
        ["thing", "47.62%", "33.33%"],
        ["other", "33.33%", "33.33%"],
    ]
    assert lines[4].split() == ["(no", "label)", "12.50%", "0.00%"]


def test_all_images_without_masks_and_masks_without_images_are_named(data: Path) -> None:
    for name in ("train.txt", "val.txt"):
        (data / name).unlink()
    for name in ("lonely", "single", "sole"):
        save(data / "images" / f"{name}.png", picture(9))
    for name in ("widowed", "bereft"):
        save(data / "masks" / f"{name}.png", some_ids())
    found = {kind: finding for (kind, split), finding in findings(data).items() if split is None}
    assert set(found) == {"image without its other half", "mask without its other half"}
    images, masks = (found[f"{kind} without its other half"].messages for kind in ("image", "mask"))
    assert [message.split()[1] for message in images] == ["lonely.png", "single.png", "sole.png"]
    assert [message.split()[1] for message in masks] == ["bereft.png", "widowed.png"]
    assert images[0] == f"image lonely.png has no mask in {data / 'masks'}; add it, or take the image out"
    assert sum(contents.images for contents in diagnose(data).contents.values()) == 3


def test_where_no_mask_has_an_images_name_one_of_theirs_is_shown(data: Path) -> None:
    for name in ("train.txt", "val.txt"):
        (data / name).unlink()
    for name in "abc":
        (data / "masks" / f"{name}.png").rename(data / "masks" / f"{name}_mask.png")
    with pytest.raises(
        DatasetError, match=r"a\.png has no mask of that name in .*masks, where the first is a_mask\.png"
    ):
        run_check(data)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_split_that_training_needs_and_that_is_missing_is_warned_of(data: Path, missing: str) -> None:
    (data / f"{missing}.txt").unlink()
    (message,) = only(data, "split missing", None, "warning")
    assert message == f"there is no split {missing}, and 'fcnseg train' needs train and val; give images to it"
    assert run_check(data).exit_code == 0


def test_all_listed_names_that_are_not_there_are_told(data: Path) -> None:
    (data / "train.txt").write_text("a\nb\nx\ny\n")
    messages = only(data, "name without its other half", None)
    assert ["'x' in train.txt" in messages[0], "'y' in train.txt" in messages[1]] == [True, True]


def test_what_else_is_wrong_is_told_where_a_test_split_has_no_masks_at_all(data: Path) -> None:
    for seed, name in enumerate("xy", 3):
        save(data / "images" / f"{name}.png", picture(seed))
    (data / "test.txt").write_text("x\ny\n")
    save(data / "masks" / "a.png", some_ids((0, 7)))
    found = findings(data)
    assert set(found) == {("name without its other half", None), ("unknown ids", "train")}
    assert len(found["name without its other half", None].messages) == 2
    (data / "test.txt").write_text("\n")
    with pytest.raises(DatasetError, match="split 'test' .* is empty"):
        run_check(data)


def test_the_same_picture_as_jpeg_and_in_another_size_is_found_in_two_splits(data: Path) -> None:
    Image.fromarray(picture(0)).save(data / "images" / "again.jpg", quality=80)
    save(data / "masks" / "again.png", some_ids())
    save(data / "images" / "larger.png", cv2.resize(picture(1), (70, 52)).astype(np.uint8))
    save(data / "masks" / "larger.png", some_ids(size=(52, 70)))
    (data / "val.txt").write_text("again\nc\nlarger\n")
    messages = only(data, "duplicates across splits", "val", severity="warning")
    assert [message.split(";")[0] for message in messages] == [
        "val image again.jpg is nearly train image a.png",
        "val image larger.png is nearly train image b.png",
    ]


def test_pictures_are_known_again_behind_coarser_compression(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    for seed in range(12):
        save(root / "images" / f"{seed}.png", picture(seed))
        Image.fromarray(picture(seed)).save(root / "images" / f"{seed}_again.jpg", quality=50)
        for name in (f"{seed}.png", f"{seed}_again.png"):
            save(root / "masks" / name, some_ids())
    (root / "train.txt").write_text("".join(f"{seed}\n" for seed in range(12)))
    (root / "val.txt").write_text("".join(f"{seed}_again\n" for seed in range(12)))
    messages = only(root, "duplicates across splits", "val", severity="warning")
    assert [message.split(";")[0] for message in messages] == [
        f"val image {seed}_again.jpg is nearly train image {seed}.png" for seed in range(12)
    ]


def test_an_image_that_is_nearly_many_of_another_split_is_told_once(data: Path) -> None:
    for name in "abcd":
        save(data / "images" / f"{name}.png", picture(0))
        save(data / "masks" / f"{name}.png", some_ids())
    (data / "val.txt").write_text("c\nd\n")
    messages = only(data, "duplicates across splits", "val", severity="warning")
    assert [message.split(";")[0] for message in messages] == [
        f"val image {name}.png is nearly train image a.png and 1 more" for name in "cd"
    ]


def test_duplicates_are_sought_in_the_test_split_too_and_not_in_lists_that_repeat_others(data: Path) -> None:
    save(data / "images" / "d.png", picture(2))
    save(data / "masks" / "d.png", some_ids())
    (data / "test.txt").write_text("d\n")
    (data / "trainval.txt").write_text("a\nb\nc\n")
    (message,) = only(data, "duplicates across splits", "test", severity="warning")
    assert message.startswith("test image d.png is nearly val image c.png")


def test_unrelated_and_flat_pictures_are_no_duplicates(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    for i in range(20):
        flat = np.full((*SIZE, 3), (60, 120, i), np.uint8)
        save(root / "images" / f"{i}.png", flat if i % 4 == 0 else picture(100 + i))
        save(root / "masks" / f"{i}.png", some_ids())
    for split, start in (("train", 0), ("val", 2)):
        (root / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(20) if i % 4 in {start, start + 1}))
    (root / "val.txt").write_text((root / "val.txt").read_text() + "0\n")
    assert findings(root) == {}


@st.composite
def hashes(draw: st.DrawFn) -> list[int | None]:
    """Hashes that differ from a few common ones in some bits, among them None."""
    bits = st.lists(st.integers(0, 63), max_size=2 * NEAR_BITS)
    base = st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF])
    near = st.builds(lambda value, flipped: value ^ sum(1 << i for i in set(flipped)), base, bits)
    return draw(st.lists(st.none() | near | st.integers(0, 2**64 - 1), max_size=8))


@given(first=hashes(), second=hashes())
@example(first=[0], second=[])
@example(first=[0, None], second=[None, 2**NEAR_BITS - 1, 2 ** (NEAR_BITS + 1) - 1])
def test_near_pairs_are_those_that_differ_in_few_bits(first: list[int | None], second: list[int | None]) -> None:
    expected = [
        (i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if a is not None and b is not None and (a ^ b).bit_count() <= NEAR_BITS
    ]
    assert list(near_pairs(first, second)) == expected


def spoil(data: Path) -> None:
    """A damaged image, an unknown id, another size, a listed name that is not there, and a class in no val mask."""
    (data / "images" / "a.png").write_bytes(b"no image")
    save(data / "masks" / "b.png", some_ids((0, 1, 2, 7)))
    save(data / "images" / "d.png", picture(3))
    save(data / "masks" / "d.png", some_ids(size=(10, 10)))
    save(data / "masks" / "c.png", some_ids((0, 1)))
    (data / "train.txt").write_text("a\nb\nd\nnowhere\n")


def test_several_faults_at_once_are_all_told_errors_first(data: Path) -> None:
    spoil(data)
    assert [(f.severity, f.kind, f.split, len(f.messages)) for f in diagnose(data).findings] == [
        ("error", "name without its other half", None, 1),
        ("error", "unreadable image", "train", 1),
        ("error", "unknown ids", "train", 1),
        ("error", "sizes differ", "train", 1),
        ("warning", "class never seen", "val", 1),
    ]
    result = run_check(data)
    assert result.exit_code == 1
    for words in ("'nowhere' in train.txt", "a.png", "has ids 7 on 768 pixels", "is 10x10", "no val mask has"):
        assert words in result.stdout
    assert result.stdout.splitlines()[-1] == "4 errors, 1 warning"


def test_warnings_alone_leave_the_exit_code_0(data: Path) -> None:
    write_classes(data, [*NAMES, "rare"])
    result = run_check(data)
    assert result.exit_code == 0
    assert "warning: class never seen in train: 1" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 errors, 2 warnings"


def test_five_cases_of_a_sort_are_printed_and_all_of_them_where_that_is_asked_for(data: Path) -> None:
    (data / "train.txt").write_text("a\nb\n" + "".join(f"missing_{i}\n" for i in range(7)))
    few, every = run_check(data).stdout, run_check(data, "--all").stdout
    assert [i for i in range(7) if f"missing_{i}" in few] == [0, 1, 2, 3, 4]
    assert "... and 2 more: --all prints them" in few
    assert [i for i in range(7) if f"missing_{i}" in every] == list(range(7))
    assert "more" not in every


def test_a_folder_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        run_check(tmp_path / "nowhere")


def test_names_are_printed_as_they_are_whatever_they_hold(tmp_path: Path) -> None:
    """Square brackets are markup to the printer, and a file's name need not be valid Unicode."""
    odd = "[red]" + os.fsdecode(b"caf\xe9")
    for seed, split in enumerate(("train", "[b]val")):
        save(tmp_path / split / f"{odd}.png", picture(seed))
        save(tmp_path / f"{split}annot" / f"{odd}.png", some_ids((0, 1, 2, 7)))
    write_classes(tmp_path, ["[i]ground[/i]", *NAMES[1:]])
    result = run_check(tmp_path, "--all", "--report", tmp_path / "page.html")
    assert result.exit_code == 1
    for words in ("[red]caf\\udce9.png has ids 7", "[i]ground[/i]", "[b]val (0 images)", "ids in [b]val: 1"):
        assert words in result.stdout
    assert "[red]caf\\udce9.png has ids 7" in (tmp_path / "page.html").read_text("utf-8")


def test_the_report_holds_all_findings_and_shares_and_samples(data: Path, tmp_path: Path) -> None:
    spoil(data)
    report = tmp_path / "out" / "page.html"
    assert run_check(data, "--report", report).exit_code == 1
    page = report.read_text("utf-8").replace("&#39;", "'")
    for finding in diagnose(data).findings:
        assert f"{finding.severity}: {finding.kind}" in page
        assert all(message in page for message in finding.messages)
    assert "4 errors, 1 warning<" in page
    assert "50.0 %" in page
    assert page.count("data:image/png;base64,") == 1
    assert page.count("data:image/jpeg;base64,") == 2


def test_the_report_of_a_sound_folder_says_so(data: Path) -> None:
    page = to_html(diagnose(data)).decode()
    assert "0 errors, 0 warnings" in page
    assert "Nothing is wrong that could be seen." in page
    assert [page.count(f"<h3>{name}.png</h3>") for name in "abc"] == [1, 1, 1]


def test_the_report_escapes_names_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "<script>alert(0)<"
    hostile = '"><img src=x onerror=alert(1)>&amp;'
    for seed, (split, ids) in enumerate((("train", (0, 1, 2)), ("val", (0, 1, 7)))):
        save(root / split / f"{hostile}.png", picture(seed))
        save(root / f"{split}annot" / f"{hostile}.png", some_ids(ids))
    write_classes(root, ["<script>alert(2)</script>", *NAMES[1:]])
    page = to_html(diagnose(root)).decode()
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;&amp;amp;.png" in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    for words in ("<script", "http://", "https://", "<link", "@import", "url("):
        assert words not in page


def test_a_report_that_cannot_stand_in_its_place_is_refused_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    for place, told in (
        (data, "is a folder; name a file"),
        (tmp_path / "file" / "x.html", "is not a folder; choose"),
        (next(data.rglob("*.png")), "is to be a report; end its name in .html"),
    ):
        result = CliRunner().invoke(check, [str(data), "--report", str(place)])
        assert isinstance(result.exception, UsageError)
        assert told in str(result.exception)
        assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_train_refuses_with_the_first_fault_and_how_many_more_there_are(data: Path, tmp_path: Path) -> None:
    (data / "images" / "b.png").write_bytes(b"no image")
    save(data / "masks" / "c.png", some_ids((0, 1, 7)))
    result = run_train(data, tmp_path / "run")
    assert isinstance(result.exception, DatasetError)
    message = str(result.exception)
    assert str(data / "images" / "b.png") in message
    assert message.endswith("(1 more of 3 samples are faulty)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "away.pth"), "--weights away.pth does not exist; give the path of a state_dict (.pth)"),
        (("--start", "away"), "--start away does not exist; name a run folder, or a checkpoint file"),
        (("--crop", "5"), "the configuration: crop is (5, 5): Input should be greater than or equal to 32; correct it"),
        ((), "{run} already holds a run (environment.json); name another folder, or add --resume or --overwrite"),
    ],
)
def test_train_tells_what_else_is_wrong_before_it_looks_at_all_images(
    data: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    (data / "images" / "b.png").write_bytes(b"no image")
    if not options:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "environment.json").write_text('{"data_fingerprint": "0"}')
    asked = [str(data), "--backbone", "no_such_net", "-o", str(tmp_path / "run"), *options]
    assert str(CliRunner().invoke(train, asked).exception) == words.format(run=tmp_path / "run")


def test_train_refuses_0_255_masks_that_would_be_no_label(data: Path, tmp_path: Path) -> None:
    write_classes(data, ["ground", "thing"])
    for name in "abc":
        save(data / "masks" / f"{name}.png", some_ids((0, 255)))
    result = run_train(data, tmp_path / "run")
    assert isinstance(result.exception, DatasetError)
    assert "write 1 for 255" in str(result.exception)


def test_train_prints_the_warnings_and_how_many_more_of_a_sort(data: Path, tmp_path: Path) -> None:
    write_classes(data, [*NAMES, "rare", "rarer"])
    save(data / "images" / "c.png", picture(0))
    result = run_train(data, tmp_path / "run")
    assert "no_such_net" in str(result.exception)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 3
    assert "no train mask has the class rare," in warnings[0]
    assert warnings[0].endswith(f"(1 more: 'fcnseg check {data}')")
    assert "no val mask has the class rare," in warnings[1]
    assert "val image c.png is nearly train image a.png" in warnings[2]
