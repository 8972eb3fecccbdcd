import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import fcnseg
from fcnseg.commands.profile import profile as command
from fcnseg.errors import ImageTooLargeError, UsageError
from fcnseg.profile import profile
from fcnseg.sample_image import sample_image

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "scenes-fcn8s.onnx"
TRAINED = ROOT / "results" / "camvid-fcn8s.onnx"


@pytest.mark.parametrize("model", [GOLDEN, TRAINED], ids=["scores at every pixel", "at borders"])
def test_nodes_are_told_apart_and_add_up(model: Path) -> None:
    found = profile(fcnseg.load(model, "cpu", 1), [sample_image(96, 128)], 3, confidence=False)
    groups = found.groups()
    assert sum(groups.values()) == pytest.approx(found.nodes_ms)
    assert 0 < found.nodes_ms < found.profiled_ms
    assert 0 < found.tail_share < 1
    assert {(False, "convolutions"), (True, "arg-max")} <= groups.keys()
    convolutions = [node for node in found.nodes if node.group == "convolutions"]
    assert all(node.multiply_adds for node in convolutions)
    assert all(node.ms >= 0 for node in found.nodes)
    assert found.peak_bytes > 96 * 128 * 4


def test_confidences_are_a_group_of_their_own() -> None:
    plain, asked = (
        profile(fcnseg.load(TRAINED, "cpu", 1), [sample_image(64, 64)], 1, confidence=c) for c in (False, True)
    )
    assert (True, "confidence") not in plain.groups()
    assert len(asked.nodes) != len(plain.nodes)


def test_the_command_prints_shares_and_keeps_all_nodes(tmp_path: Path) -> None:
    out = tmp_path / "nodes.json"
    arguments = [GOLDEN, "--size", "64x96", "--runs", 2, "--batch", 2, "--top", 3, "--device", "cpu", "--json", out]
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    for part in ("2 x 64x96 on cpu", "convolutions", "100.0%", "GFLOP/s", "times the net alone", f"all nodes: {out}"):
        assert part in result.output
    content = json.loads(out.read_text())
    assert sum(node["ms"] for node in content["nodes"]) == pytest.approx(content["nodes_ms"])
    assert sum(group["share"] for group in content["groups"]) == pytest.approx(1)


def test_the_figures_do_not_take_the_models_place(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(GOLDEN.read_bytes())
    with pytest.raises(UsageError, match=r"model\.onnx would replace an input"):
        CliRunner().invoke(command, [str(model), "--json", str(model)], catch_exceptions=False)


def test_a_size_beyond_all_images_is_refused_in_one_line() -> None:
    with pytest.raises(
        ImageTooLargeError, match=r"the image to measure with has 99999 x 99999 = \d+ pixels, more than"
    ):
        CliRunner().invoke(command, [str(GOLDEN), "--size", "99999x99999"], catch_exceptions=False)
