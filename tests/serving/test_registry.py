import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fcnseg.client import Client
from fcnseg.engine import EngineOptions
from fcnseg.errors import ModelFileError, ModelNotFoundError, RemoteModelNotFoundError
from fcnseg.files import sha256_of
from fcnseg.tuning import Settings, Tuning, this_machine
from serving.batcher import BatchingConfig
from serving.errors import StoppingError
from serving.registry import ModelRegistry
from serving.served_model import ModelConfig
from tests.running_server import CPU_CONFIG, running_server
from tests.tiny_model import write_tiny_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Model `cat` in versions 1, 2 and 10, and `dog` in version 3."""
    root = tmp_path / "repository"
    for name, version in (("cat", 1), ("cat", 2), ("cat", 10), ("dog", 3)):
        write_tiny_model(root / name / str(version) / "model.onnx", licence=f"{name} {version}")
    return root


def test_repository_holds_names_and_versions_in_number_order(repository: Path) -> None:
    (repository / ".git").mkdir()
    (repository / "lost+found").mkdir()
    (repository / "cat" / "notes").mkdir()
    (repository / "cat" / "03").mkdir()
    shutil.copy(repository / "cat" / "1" / "model.onnx", repository / "cat" / "03")
    registry = ModelRegistry([repository], CPU_CONFIG)
    assert [(m.name, m.version) for m in registry.models] == [("cat", "1"), ("cat", "2"), ("cat", "10"), ("dog", "3")]


def test_empty_version_is_the_highest_and_each_version_is_its_own_file(repository: Path) -> None:
    registry = ModelRegistry([repository], CPU_CONFIG)
    assert registry.find("cat", "").version == "10"
    assert [registry.find("cat", v).info.licence for v in ("1", "2", "10")] == ["cat 1", "cat 2", "cat 10"]


def test_empty_name_is_the_only_model(repository: Path) -> None:
    shutil.rmtree(repository / "dog")
    registry = ModelRegistry([repository], CPU_CONFIG)
    assert (registry.find("", "").name, registry.find("", "2").version) == ("cat", "2")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("cow", "", "no model 'cow' on this server, which serves cat, dog"),
        ("", "", "no model was named, and this server serves cat, dog; name one of them"),
        ("cat", "3", "no version '3' of model 'cat', whose versions are 1, 2, 10"),
        ("cat", "01", "no version '01'"),
        ("Cat", "", "no model 'Cat'"),
    ],
)
def test_unknown_model_is_told_with_those_there_are(repository: Path, name: str, version: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words):
        ModelRegistry([repository], CPU_CONFIG).find(name, version)


def test_a_name_too_long_for_a_status_is_told_shortened(repository: Path) -> None:
    with running_server(repository) as server, Client(server.address) as client:
        for name, version in (("n" * 20_000, ""), ("cat", "1" * 20_000)):
            with pytest.raises(RemoteModelNotFoundError, match=r"no (model|version) '(n|1){100}\.\.\.'"):
                client.get_model(name, version)


def test_without_strictness_what_opens_is_served(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    (repository / "cat" / "10" / "model.onnx").write_bytes(b"half a fi")
    (repository / "cow").mkdir()
    with pytest.raises(ModelFileError, match=r"cow .* holds no version"):
        ModelRegistry([repository], CPU_CONFIG)
    registry = ModelRegistry([repository], CPU_CONFIG, strict=False)
    assert [(m.name, m.version) for m in registry.models] == [("cat", "1"), ("cat", "2"), ("dog", "3")]
    assert "model 'cat', version 10 is not served: " in caplog.text
    assert registry.unopened == {"cat"}


def test_without_strictness_one_model_has_to_open(tmp_path: Path) -> None:
    (tmp_path / "cow").mkdir()
    with pytest.raises(ModelFileError, match=r"cow .* holds no version"):
        ModelRegistry([tmp_path], CPU_CONFIG, strict=False)
    (tmp_path / "cow" / "1").mkdir()
    (tmp_path / "cow" / "1" / "model.onnx").write_bytes(b"half a fi")
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        ModelRegistry([tmp_path], CPU_CONFIG, strict=False)


def test_a_registry_that_is_closed_opens_nothing_more(repository: Path) -> None:
    """Else a server that is stopped while new versions come in would open and warm them all first."""
    registry = ModelRegistry([repository], CPU_CONFIG)
    registry.close()
    write_tiny_model(repository / "cat" / "11" / "model.onnx")
    registry.refresh()
    with pytest.raises(StoppingError, match="the server is stopping"):
        registry.load("cat")
    assert [model.version for model in registry.models if model.name == "cat"] == ["1", "2", "10"]


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        ModelRegistry([tmp_path / "gone.onnx"], CPU_CONFIG)


def test_clients_reach_every_model_and_version(repository: Path) -> None:
    with running_server(repository) as server, Client(server.address) as client:
        listed = [(m.name, m.version, m.licence) for m in client.list_models()]
        assert listed == [
            ("cat", "1", "cat 1"),
            ("cat", "2", "cat 2"),
            ("cat", "10", "cat 10"),
            ("dog", "3", "dog 3"),
        ]
        assert client.get_model("cat").version == "10"
        assert client.get_model("cat", "2").licence == "cat 2"
        answered = client.segment(b"BM" + bmp_of_one_pixel()[2:], model="dog")
        assert (answered.model_name, answered.model_version) == ("dog", "3")


def bmp_of_one_pixel() -> bytes:
    header = b"BM" + (58).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = b"".join(n.to_bytes(size, "little") for n, size in ((40, 4), (1, 4), (1, 4), (1, 2), (24, 2)))
    return header + info + bytes(24) + b"\x00\x00\xff\x00"


@pytest.mark.parametrize(
    ("said", "runners"),
    [
        (Settings(), 2),
        (Settings(threads=1), 1),  # nothing to share
        (Settings(threads=4), 2),
        (Settings(runners=3), 3),
        (Settings(threads=1, runners=2), 2),
    ],
)
def test_runs_at_a_time_share_threads_on_the_cpu(tiny_model: Path, said: Settings, runners: int) -> None:
    config = ModelConfig("cpu", EngineOptions(), BatchingConfig(runners=2), said=said)
    options, batching = config.for_model(tiny_model)
    assert (batching.runners, options.runs) == (runners, runners)
    assert options.threads == (said.threads or 0)


def test_threads_that_were_found_with_two_runs_beside_each_other_hold_for_these_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copy(tiny_model, tmp_path / "m.onnx"))
    found = Settings(threads=1, runners=2)
    Tuning(sha256_of(model), this_machine("cpu"), "throughput", ((8, 8),), found, ()).write(model)
    config = replace(CPU_CONFIG, options=EngineOptions(), tuned=True)

    def threads_and_runners(said: Settings) -> tuple[int, int]:
        options, batching = replace(config, said=said).for_model(model)
        return options.threads, batching.runners

    assert threads_and_runners(Settings()) == (1, 2)
    assert threads_and_runners(Settings(runners=1)) == (0, 1)
    assert threads_and_runners(Settings(runners=2)) == (1, 2)
    assert threads_and_runners(Settings(threads=5)) == (5, 2)
