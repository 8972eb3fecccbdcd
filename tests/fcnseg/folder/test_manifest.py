import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcnseg
from fcnseg.folder import FolderOptions, segment_folder
from fcnseg.folder.manifest import Manifest, Row, read_rows
from tests.image_folders import touch, write_noise

names = st.text(st.characters(exclude_characters="\0"), min_size=1)


@given(names, st.none() | names, st.lists(names), st.none() | names)
def test_a_row_comes_back_from_its_line(image: str, mask: str | None, files: list[str], error: str | None) -> None:
    area = {"id": 0, "name": image, "pixels": 12, "fraction": 1.0}
    row = Row(image, 99, 2**60, mask, tuple(files), 3, 4, (area,), error=error)
    line = row.line()
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert Row.of(line) == row


def test_the_latest_row_of_an_image_counts_and_the_order_is_the_given_one(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.jsonl", fresh=True) as manifest:
        for image, error in (("b", None), ("a", "broken"), ("c", None), ("a", None)):
            manifest.append(Row(image, error=error))
        assert manifest.row("a") == Row("a")
        assert manifest.row("x") is None
        manifest.put_in_order(["a", "b", "x"])
        assert manifest.row("c") is None
        manifest.append(Row("d"))
    assert list(read_rows(tmp_path / "m.jsonl")) == [Row("a"), Row("b"), Row("d")]


def test_rows_are_added_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(Row("a").line() + Row("b").line() + Row("c").line()[:-9])
    with Manifest(path, fresh=False) as manifest:
        assert manifest.row("c") is None
        manifest.append(Row("d"))
    with Manifest(path, fresh=False) as manifest:
        manifest.append(Row("e"))
        assert [manifest.row(name) for name in "abde"] == [Row(name) for name in "abde"]
    assert list(read_rows(path)) == [Row(name) for name in "abde"]


def test_a_row_tells_what_became_of_an_image(tiny_model: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "in" / "sub", 1)
    (tmp_path / "in" / "x.jpg").write_bytes(b"broken")
    segmenter = fcnseg.load(tiny_model, "cpu")
    options = FolderOptions(overlay=True, top=1)
    list(segment_folder(segmenter, tmp_path / "in", tmp_path / "out", options))
    good, bad = (json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines())
    expected = segmenter.segment(tmp_path / "in" / "sub" / "000.png")
    (peak,) = expected.strongest(1)
    status = (tmp_path / "in" / "sub" / "000.png").stat()
    assert good.pop("timings_ms").keys() == {"decode", "infer", "encode"}
    assert good == {
        "image": "sub/000.png",
        "size_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "mask": "sub/000.png",
        "files": ["sub/000.overlay.jpg", f"sub/000.heatmap-{peak.info.id}-{peak.info.name}.jpg"],
        "height": 10,
        "width": 30,
        "classes": [
            {"id": a.info.id, "name": a.info.name, "pixels": a.pixels, "fraction": round(a.fraction, 6)}
            for a in expected.classes
        ],
        "top": [{"id": peak.info.id, "name": peak.info.name, "probability": round(peak.probability, 6)}],
        "error": None,
    }
    assert bad["image"] == "x.jpg"
    assert bad["mask"] is None
    assert "not an image" in bad["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes that are no text are Linux's")
def test_parquet_has_the_rows_of_the_manifest(tiny_model: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'fcnseg[parquet]'")
    write_noise(tmp_path / "in", 2)
    touch(tmp_path / "in", "odd\udcff.png")
    (tmp_path / "in" / "x.jpg").write_bytes(b"broken")
    list(segment_folder(fcnseg.load(tiny_model, "cpu"), tmp_path / "in", tmp_path / "out"))
    table = parquet.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    rows = list(read_rows(tmp_path / "out" / "manifest.jsonl"))
    assert [row["image"] for row in table] == ["000.png", "001.png", "odd\\udcff.png", "x.jpg"]
    assert [row["classes"] for row in table] == [list(row.classes) for row in rows]
    assert [row["error"] for row in table] == [row.error for row in rows]
    assert table[0]["timings_ms"]["infer"] == rows[0].timings_ms["infer"]
