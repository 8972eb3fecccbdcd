import re
from pathlib import Path

import fcnseg
from fcnseg.folder import FolderOptions, segment_folder
from fcnseg.folder.manifest import Row
from fcnseg.folder.totals import Totals
from tests.image_folders import write_noise
from tests.tiny_model import write_tiny_model


def test_a_report_tells_totals_thumbnails_and_failures(tmp_path: Path) -> None:
    model = fcnseg.load(write_tiny_model(tmp_path / "m.onnx", class_names=("<b>", "green", "blue")), "cpu")
    write_noise(tmp_path / "in", 60)
    (tmp_path / "in" / "<i>.png").write_bytes(b"broken")
    results = list(segment_folder(model, tmp_path / "in", tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "60 images segmented" in page
    assert "1 image failed" in page
    assert "&lt;i&gt;.png" in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert page.count("data:image/jpeg;base64,") == 20
    pixels = sum(area.pixels for result in results for area in result.classes if area.info.name == "green")
    assert re.search(rf"green</th>.*?>{pixels:,}</td>", page, re.DOTALL)
    assert "http:" not in page
    assert "https:" not in page


def test_a_report_can_be_left_out(tiny_model: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "in", 2)
    options = FolderOptions(report=False)
    list(segment_folder(fcnseg.load(tiny_model, "cpu"), tmp_path / "in", tmp_path / "out", options))
    assert not (tmp_path / "out" / "report.html").exists()


def test_totals_count_pixels_images_and_the_largest_class_of_each() -> None:
    def area(class_id: int, pixels: int, fraction: float) -> dict[str, object]:
        return {"id": class_id, "name": "", "pixels": pixels, "fraction": fraction}

    totals = Totals.of(
        [
            Row("a", classes=(area(0, 30, 0.3), area(1, 70, 0.7))),
            Row("b", classes=(area(1, 100, 1.0),), top=({"id": 1, "name": "", "probability": 0.5},)),
            Row("c", error="broken"),
        ]
    )
    assert (totals.done, totals.failed, totals.failures) == (2, 1, [("c", "broken")])
    assert dict(totals.pixels) == {0: 30, 1: 170}
    assert dict(totals.images) == {0: 1, 1: 2}
    assert totals.largest == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert (totals.top[1].images, totals.top[1].highest) == (1, 0.5)
