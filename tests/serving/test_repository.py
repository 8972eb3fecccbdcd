import os
import shutil
import threading
from pathlib import Path

import pytest

from fcnseg.errors import ModelFileError, UsageError
from serving.repository import Faults, ModelSource, find_sources
from tests.tiny_model import write_tiny_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Model `cat` in versions 1, 2 and 10, and `dog` in version 3."""
    root = tmp_path / "repository"
    for name, version in (("cat", 1), ("cat", 2), ("cat", 10), ("dog", 3)):
        write_tiny_model(root / name / str(version) / "model.onnx")
    return root


def test_file_is_named_by_its_stem_and_is_version_1(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "cat.onnx")
    assert find_sources([path]) == [ModelSource("cat", "1", path)]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tiny_model(tmp_path / folder / "cat.onnx")
    with pytest.raises(UsageError, match="are both model 'cat', version 1"):
        find_sources([tmp_path / "a" / "cat.onnx", tmp_path / "b" / "cat.onnx"])


def test_models_are_in_the_order_of_names_and_versions_whatever_the_order_of_paths(
    repository: Path, tmp_path: Path
) -> None:
    """Else a look at what the paths hold would find a change where there is none."""
    (repository / "cat" / "1" / "model.onnx").unlink()
    path = write_tiny_model(tmp_path / "cat.onnx")
    found = [(source.name, source.version) for source in find_sources([repository, path])]
    assert found == [("cat", "1"), ("cat", "2"), ("cat", "10"), ("dog", "3")]


def test_a_name_that_is_no_line_of_text_is_refused(repository: Path) -> None:
    for name in (b"caf\xe9", b"two\nlines"):
        folder = os.fsencode(repository) + b"/" + name
        shutil.copytree(os.fsencode(repository / "dog"), folder)
        with pytest.raises(ModelFileError, match="is not a line of printable text; rename it"):
            find_sources([repository])
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("cat", "folder repository/cat cannot be read: Permission denied; let the server read it"),
        ("cat/2", "repository/cat/2/model.onnx cannot be examined: Permission denied; let the server read it"),
    ],
)
def test_a_folder_that_may_not_be_read_is_told_or_left_out(
    repository: Path, folder: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / folder).chmod(0o700)
    repository.parent.chmod(0o755)
    monkeypatch.chdir(repository.parent)  # whose own parents are root's alone
    faults: Faults = {}
    os.seteuid(65534)
    try:
        with pytest.raises(ModelFileError, match=f"^{words}$"):
            find_sources([Path("repository")])
        found = find_sources([Path("repository")], faults)
    finally:
        os.seteuid(0)
    assert [(source.name, source.version) for source in found] == [("dog", "3")]
    assert {name: str(error) for name, error in faults.items()} == {"cat": words}


def test_empty_repository_tells_its_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"NAME/VERSION/model\.onnx"):
        find_sources([tmp_path])


def test_model_without_a_version_is_told(repository: Path) -> None:
    (repository / "cow" / "one").mkdir(parents=True)
    with pytest.raises(ModelFileError, match=r"cow .* holds no version; put the model at .*cow/1/model\.onnx"):
        find_sources([repository])


def test_a_repository_may_change_while_it_is_looked_at(repository: Path) -> None:
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for i in range(50):
                (repository / f"cow {i}").mkdir()
            for i in range(50):
                (repository / f"cow {i}").rmdir()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(300):
            assert {source.name for source in find_sources([repository], {})} == {"cat", "dog"}
    finally:
        ended.set()
        changing.join()
