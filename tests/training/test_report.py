import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from typing_extensions import override

from fcnseg.files import write_bytes
from fcnseg.masks import Encoding, encode, read_ids
from fcnseg.types import LabelMap
from tests.tiny_model import write_tiny_model
from training.commands.evaluate import evaluate
from training.metrics import FullMeter
from training.report import Subject, figures, to_json
from training.report_page import Example, to_html

NAMES = ("red", "green", "blue")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }} & [red]ünïcode[/red]")


class Page(HTMLParser):
    """A page's text, and its elements with their attributes."""

    def __init__(self, source: bytes) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = False
        self.feed(source.decode())
        self.text = " ".join(self.text.split())

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    @override
    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    @override
    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_data(root: Path, names: tuple[str, ...], count: int, size: tuple[int, int] = (12, 16)) -> Path:
    """Images of noise with random masks; the higher an image's number, the more of it is labelled as it looks."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        blocks = random.integers(0, 3, (size[0] // 4, size[1] // 4))
        shown = np.kron(blocks, np.ones((4, 4))).astype(np.uint8)
        mask = np.where(random.random(size) < i / count, shown, 0).astype(np.uint8)
        mask[:2] = 255
        cv2.imwrite(str(root / "images" / f"{i}.png"), (255 * np.eye(3, dtype=np.uint8)[shown])[..., ::-1])
        write_bytes(root / "masks" / f"{i}.png", encode(mask, Encoding.PNG, LabelMap.from_names(names)))
    (root / "val.txt").write_text("".join(f"{i}.png\n" for i in range(count)))
    (root / "classes.json").write_text(json.dumps({"names": names}))
    return root


def evaluated(folder: Path, names: tuple[str, ...], count: int, *options: str) -> tuple[dict[str, Any], Page, bytes]:
    """The figures and the page of a tiny model."""
    model = write_tiny_model(folder / "model.onnx", class_names=names)
    data = write_data(folder / "data", names, count)
    outputs = ["--json", str(folder / "out.json"), "--report", str(folder / "out.html")]
    result = CliRunner().invoke(evaluate, [str(model), str(data), *outputs, "--device", "cpu", *options])
    assert result.exit_code == 0, result.output
    source = (folder / "out.html").read_bytes()
    return json.loads((folder / "out.json").read_text()), Page(source), source


def simulated(classes: int, truth: np.ndarray, predicted: np.ndarray) -> tuple[dict[str, Any], LabelMap]:
    label_map = LabelMap.from_names([f"kind {i}" for i in range(classes)])
    meter = FullMeter(classes, None)
    meter.update(predicted, truth, np.full(truth.shape, 255, np.uint8))
    return figures(Subject(Path("m.onnx"), "0" * 64, label_map, Path("data"), "val"), meter.compute()), label_map


def picture(source: str | None) -> np.ndarray:
    """The pixels (RGB) of a data URI."""
    assert source is not None
    return cv2.imdecode(np.frombuffer(base64.b64decode(source.split(",")[1]), np.uint8), cv2.IMREAD_COLOR_RGB)


def test_the_page_says_what_the_figures_say(tmp_path: Path) -> None:
    found, page, _ = evaluated(tmp_path, NAMES, 5)
    for name, key in [
        ("Mean IoU", "mean_iou"),
        ("Pixel accuracy", "pixel_accuracy"),
        ("Mean accuracy", "mean_accuracy"),
        ("Frequency-weighted IoU", "frequency_weighted_iou"),
        ("Boundary IoU", "boundary_iou"),
        ("Calibration error", "calibration_error"),
    ]:
        assert f"{name} {100 * found[key]:.1f} %" in page.text
    for name, iou in found["per_class_iou"].items():
        assert f"{name} {100 * iou:.1f} %" in page.text
        assert {"class": "fill", "style": f"width: {100 * iou:.2f}%"} in page.all("div")
    cells = [attributes.get("title") for attributes in page.all("td")]
    for truth, row in zip(found["classes"], found["confusion_matrix"], strict=True):
        for predicted, count in zip(found["classes"], row, strict=True):
            assert not count or f"{truth} as {predicted}: {count} pixels" in cells
    for key in ("model", "model_sha256", "label_map_hash", "data", "split"):
        assert found[key] in page.text
    assert "5 images" in page.text


def test_best_and_worst_images_stand_side_by_side_with_truth_and_prediction(tmp_path: Path) -> None:
    _, page, _ = evaluated(tmp_path, NAMES, 5)
    alts = [attributes["alt"] for attributes in page.all("img")]
    names = ["4.png", "3.png", "2.png", "0.png", "1.png"]  # the best first, then the worst first
    assert alts == [f"{what} of {name}" for name in names for what in ("image", "truth", "prediction")]
    image, truth, prediction = (picture(attributes["src"]) for attributes in page.all("img")[:3])
    mask = tmp_path / "data" / "masks" / "4.png"
    shown = cv2.imread(str(tmp_path / "data" / "images" / "4.png"), cv2.IMREAD_COLOR_RGB)
    assert np.abs(image.astype(int) - shown).mean() < 24  # JPEG
    np.testing.assert_array_equal(prediction, shown)  # the tiny model's colours are those that it sees
    assert {tuple(pixel) for pixel in truth[:2].reshape(-1, 3)} == {(176, 176, 176), (214, 214, 214)}
    np.testing.assert_array_equal(truth[2:], LabelMap.from_names(NAMES, COLOURS).palette[read_ids(mask)[2:]])


def test_the_page_needs_no_other_file_and_no_script(tmp_path: Path) -> None:
    _, page, source = evaluated(tmp_path, HOSTILE, 3)
    assert not page.all("script")
    assert not page.all("link")
    assert all((attributes["src"] or "").startswith("data:image/") for attributes in page.all("img"))
    assert b"url(" not in source
    assert b"http:" not in source
    assert b"https:" not in source
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert b"prefers-color-scheme: dark" in source


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    found, page, _ = evaluated(tmp_path, HOSTILE, 3)
    assert found["classes"] == list(HOSTILE)
    for name in HOSTILE:
        assert name in page.text
        assert any(attributes.get("title") == name for attributes in page.all("th"))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_averaged_figures_are_marked_as_not_served(tmp_path: Path) -> None:
    _, page, _ = evaluated(tmp_path, NAMES, 2, "--scales", "0.5", "1.0", "--flip")
    assert "averages over views of each image (scales 0.5, 1.0, each also mirrored)" in page.text
    _, page, _ = evaluated(tmp_path / "served", NAMES, 2)
    assert "averages over views" not in page.text


def test_many_classes_share_a_matrix_with_those_of_few_pixels_as_one(tmp_path: Path) -> None:
    truth = np.repeat(np.arange(40, dtype=np.uint8), 10 + np.arange(40))[None]  # kind 39 has the most pixels
    predicted = np.roll(truth, 3, axis=1)
    found, label_map = simulated(40, truth, predicted)
    page = Page(to_html(found, label_map, [], [], None))
    assert "16 other classes" in page.text
    titles = [title for attributes in page.all("td") if (title := attributes.get("title"))]
    assert sum(int(re.findall(r": (\d+) pixels", title)[0]) for title in titles) == truth.size
    assert "kind 39 as kind 39: 46 pixels" in titles
    assert not any(title.startswith("kind 15 ") for title in titles)


def test_a_class_that_occurs_nowhere_has_no_bar() -> None:
    found, label_map = simulated(3, np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    page = Page(to_html(found, label_map, [], [], None))
    assert "kind 1 not present" in page.text
    assert sum(attributes.get("class") == "fill" for attributes in page.all("div")) == 1


def test_the_largest_page_stays_below_five_megabytes() -> None:
    random = np.random.default_rng(0)
    shape = (700, 700)
    truth, predicted = (random.integers(0, 40, shape).astype(np.uint8) for _ in range(2))
    found, label_map = simulated(40, truth, predicted)
    image = random.integers(0, 256, (*shape, 3)).astype(np.uint8)
    example = Example("noise.png", 0.5, 0.5, image, truth, predicted)
    source = to_html(found, label_map, [example] * 4, [example] * 4, None)
    assert len(source) < 5e6
    assert max(picture(attributes["src"]).shape for attributes in Page(source).all("img")) == (360, 360, 3)


def test_a_file_name_that_is_no_unicode_does_not_spoil_the_page() -> None:
    found, label_map = simulated(2, np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    ids = np.zeros((4, 4), np.uint8)
    example = Example("caf\udce9.png", 1.0, 1.0, np.zeros((4, 4, 3), np.uint8), ids, ids)
    assert "caf\\udce9.png" in Page(to_html(found, label_map, [example], [], None)).text


def test_figures_come_back_from_json_and_are_never_nan() -> None:
    found, _ = simulated(3, np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8))
    assert json.loads(to_json(found)) == found
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({**found, "mean_iou": float("nan")})
