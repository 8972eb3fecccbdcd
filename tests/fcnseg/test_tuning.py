import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fcnseg
from fcnseg.commands.tune import tune
from fcnseg.engine import EngineOptions
from fcnseg.errors import UsageError
from fcnseg.files import sha256_of
from fcnseg.tuning import NOTHING_SAID, Machine, Settings, Tuning, this_machine, tuned_settings, tuning_path

FOUND = Settings(threads=1, spinning=False, runners=2)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_model, tmp_path / "m.onnx"))


def found_for(model: Path, machine: Machine | None = None) -> Tuning:
    return Tuning(sha256_of(model), machine or this_machine("cpu"), "throughput", ((8, 8),), FOUND, ())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(tune, [str(argument) for argument in arguments])


def test_a_measurement_is_written_beside_the_model_and_taken_by_load(model: Path) -> None:
    result = run(model, "--size", "8x8", "--seconds", 0.1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "best for throughput on cpu:" in result.output
    content = json.loads(tuning_path(model).read_text())
    assert content["model_sha256"] == sha256_of(model)
    assert content["sizes"] == [[8, 8]]
    assert len(content["measurements"]) > 3
    assert content["settings"]["spinning"] is not None  # `load` spins by default, a server does not
    assert fcnseg.load(model, "cpu").tuned == tuned_settings(model, "cpu").with_runs(1)


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_seconds_without_an_end_are_refused(model: Path, seconds: str) -> None:
    result = run(model, "--size", "8x8", "--seconds", seconds, "--device", "cpu")
    assert isinstance(result.exception, UsageError)


def test_a_dry_run_writes_nothing(model: Path) -> None:
    assert run(model, "--size", "8x8", "--seconds", 0, "--device", "cpu", "--dry-run").exit_code == 0
    assert not tuning_path(model).exists()


def test_what_is_said_goes_before_what_was_found(model: Path) -> None:
    replace(found_for(model), settings=replace(FOUND, runners=None)).write(model)
    assert fcnseg.load(model, "cpu").engine.options == EngineOptions(threads=1, spinning=False)
    assert fcnseg.load(model, "cpu", threads=3).engine.options == EngineOptions(threads=3, spinning=False)
    assert fcnseg.load(model, "cpu", options=EngineOptions()).engine.options == EngineOptions()
    assert fcnseg.load(model, "cpu", tuned=False).engine.options == EngineOptions()


def test_threads_that_were_found_with_two_runs_beside_each_other_hold_for_these_alone(model: Path) -> None:
    found_for(model).write(model)
    assert fcnseg.load(model, "cpu").engine.options == EngineOptions(spinning=False)
    assert fcnseg.load(model, "cpu", threads=2).engine.options == EngineOptions(threads=2, spinning=False)


def test_what_was_found_elsewhere_or_for_another_file_is_not_used(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = this_machine("cpu")
    found_for(model, replace(here, cores=here.cores + 1)).write(model)
    assert tuned_settings(model, "cpu") == NOTHING_SAID
    assert "it was measured elsewhere (cores" in caplog.messages[-1]
    replace(found_for(model), model_sha256="0" * 64).write(model)
    assert tuned_settings(model, "cpu") == NOTHING_SAID
    assert "it was measured with another model file; run 'fcnseg tune' again" in caplog.messages[-1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\0"])
def test_a_file_that_is_none_is_told_of_in_one_line(
    model: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    tuning_path(model).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert tuned_settings(model, "cpu") == NOTHING_SAID
    (message,) = caplog.messages
    assert "is not used: it is not valid at" in message
    assert fcnseg.load(model, "cpu").engine.options == EngineOptions()


def test_a_place_that_cannot_be_written_costs_the_file_and_not_the_result(model: Path) -> None:
    tuning_path(model).mkdir()
    result = run(model, "--size", "8x8", "--seconds", 0, "--device", "cpu")
    assert "best for throughput on cpu:" in result.output
    assert isinstance(result.exception, UsageError)
    assert "is a folder; name a file in it" in str(result.exception)
