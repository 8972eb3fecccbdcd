import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fcnseg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that, first on the path, makes torch and all that stands on it look uninstalled."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'lightning', 'torchmetrics'):\n"
        "    sys.modules[name] = None\n"
    )
    return str(folder)


def test_help_lists_the_commands_without_torch(without_torch: str) -> None:
    done = run("--help", PYTHONPATH=without_torch)
    assert done.returncode == 0, done.stderr
    for command in ("segment", "request", "serve", "train", "export", "heatmap"):
        assert f"  {command} " in done.stdout


def test_the_core_imports_without_torch(without_torch: str) -> None:
    code = "import sys, fcnseg, fcnseg.folder, fcnseg.render; assert sys.modules['torch'] is None"
    environment = os.environ | {"PYTHONPATH": without_torch}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=180, env=environment)


def test_a_command_that_needs_a_package_names_the_extra(without_torch: str, tmp_path: Path) -> None:
    done = run("heatmap", "resnet18", "-o", str(tmp_path / "m.onnx"), PYTHONPATH=without_torch)
    assert done.returncode == 2
    assert "which is not installed: pip install 'fcnseg[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_command_is_answered_with_the_closest() -> None:
    done = run("segmnet")
    assert done.returncode == 2
    assert done.stderr.startswith("fcnseg: error: no command 'segmnet'; did you mean segment")
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_command_that_is_near_none_is_answered_with_some() -> None:
    assert run("xyzzy").stderr.endswith(", ...; see 'fcnseg --help'\n")


def test_an_unknown_option_is_one_line() -> None:
    done = run("segment", "--overlya", "a", "b", "c")
    assert done.returncode == 2
    assert "--overlya" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--memory", "2GiB", "Invalid value for '--memory': '2GiB' is not a whole number; see 'fcnseg segment --help'"),
        ("--timeout", "5s", "Invalid value for '--timeout': '5s' is not a number; see 'fcnseg segment --help'"),
    ],
)
def test_what_is_no_number_is_said_to_be_none(option: str, value: str, words: str) -> None:
    assert run("segment", "a", "b", "c", option, value).stderr == f"fcnseg: error: {words}\n"


def test_the_help_says_in_whole_sentences_what_each_command_is_for() -> None:
    _, listed = run("--help").stdout.split("Commands:\n")
    assert "..." not in listed
    assert listed.count("  tune ") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("profile",), "--size HxW"),
        (("models", "load"), "Example: fcnseg models load cat --server 127.0.0.1:50051 --token-file operator.token\n"),
    ],
)
def test_what_the_help_shows_can_be_typed(command: tuple[str, ...], words: str) -> None:
    assert words in run(*command, "--help").stdout


def test_without_arguments_the_help_is_shown() -> None:
    done = run()
    assert done.returncode == 2
    assert "Usage: fcnseg" in done.stderr


def test_the_version_is_that_of_the_package() -> None:
    import fcnseg

    assert run("--version").stdout == f"fcnseg, version {fcnseg.__version__}\n"


def test_tracebacks_are_shown_on_demand_only(tmp_path: Path) -> None:
    paths = (str(tmp_path / "m.onnx"), str(tmp_path / "in"), str(tmp_path / "out"))
    quiet = run("segment", *paths)
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stderr
    for loud in (run("--debug", "segment", *paths), run("segment", *paths, "--debug")):
        assert loud.returncode == 2
        assert "Traceback" in loud.stderr
        assert quiet.stderr in loud.stderr


def test_a_fault_of_ours_is_one_line_that_tells_of_debug() -> None:
    code = (
        "import sys, click, fcnseg.cli\n"
        "@fcnseg.cli.cli.command('faulty')\n"
        "def faulty():\n"
        "    raise ZeroDivisionError('by\\nzero')\n"
        "fcnseg.cli._Commands.get_command = lambda self, ctx, name: faulty\n"
        "sys.argv = ['fcnseg', 'faulty']\n"
        "fcnseg.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 1
    assert done.stderr == (
        "fcnseg: error: unexpected ZeroDivisionError: by zero; run again with --debug for the traceback\n"
    )
