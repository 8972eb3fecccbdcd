from pathlib import Path

import pytest

from fcnseg.engine import Engine, EngineOptions
from fcnseg.errors import DeviceError
from fcnseg.placement import require_device
from fcnseg.types import Placement
from tests.tiny_model import write_tiny_model

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def placements(path: Path) -> dict[tuple[str, bool], int]:
    probe = Engine(path, "cpu", EngineOptions(threads=1, prove=True)).probe
    assert probe is not None
    assert {p.provider for p in probe.placements} == {CPU}
    return {(p.operator, p.image_sized): p.nodes for p in probe.placements}


def test_nodes_on_data_of_the_images_size_are_told_from_those_on_shapes(tiny_model: Path) -> None:
    found = placements(tiny_model)
    for operator in ("Conv", "AveragePool", "Pad", "ArgMax", "Resize", "If"):
        assert (operator, True) in found, operator
        assert (operator, False) not in found, operator
    assert found["Shape", False] == 2
    assert ("Mod", False) in found  # the arithmetic of the padding
    assert ("Softmax", True) in found  # the branch with confidence
    assert any(operator == "ConstantOfShape" for operator, _ in found)  # and the one without


def test_work_that_does_not_grow_with_the_image_is_not_image_sized(tmp_path: Path) -> None:
    found = placements(write_tiny_model(tmp_path / "m.onnx", work_rounds=128))
    assert found["MatMul", False] == 2


def test_nothing_is_proved_or_left_behind_unless_asked_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert Engine(tiny_model, "cpu").probe is None
    before = set(Path.cwd().iterdir())
    assert Engine(tiny_model, "cpu", EngineOptions(prove=True)).probe is not None
    assert set(Path.cwd().iterdir()) == before


def test_a_device_that_left_image_sized_work_to_the_cpu_is_refused() -> None:
    shapes = [Placement(CPU, "Gather", 7, image_sized=False), Placement(CPU, "Shape", 2, image_sized=False)]
    conv = Placement(CUDA, "Conv", 20, image_sized=True)
    require_device([*shapes, conv], CUDA, "cuda:0")
    with pytest.raises(DeviceError) as caught:
        require_device([*shapes, conv, Placement(CPU, "ArgMax", 1, image_sized=True)], CUDA, "cuda:0")
    assert str(caught.value).startswith(
        "device cuda:0 does not run the whole model: 1 ArgMax on CPUExecutionProvider touch data of the image's size"
    )


def test_placements_of_a_served_model_are_told_to_clients(tiny_model: Path) -> None:
    pytest.importorskip("serving.server")
    from fcnseg.client import Client
    from tests.running_server import running_server

    with running_server(tiny_model) as server, Client(server.address) as client:
        execution = client.get_model().execution
    assert execution.provider == CPU
    assert execution.precision == "fp32"
    assert {(p.operator, p.image_sized): p.nodes for p in execution.placements} == placements(tiny_model)


def test_what_a_pixel_costs_is_known_without_an_arena_too(tiny_model: Path) -> None:
    costs = []
    for arena in (True, False):
        probe = Engine(tiny_model, "cpu", EngineOptions(threads=1, arena=arena, prove=True)).probe
        assert probe is not None
        costs.append(probe.bytes_per_pixel)
    assert costs[0] == costs[1] > 0
