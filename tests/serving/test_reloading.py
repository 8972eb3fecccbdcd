from pathlib import Path

import pytest

from fcnseg.errors import UsageError
from serving.reloading import Reloaded
from tests.waiting import wait_until


def reload(path: Path) -> Reloaded[str]:
    def read() -> str:
        if not path.exists():
            raise UsageError(f"{path} is gone")
        return path.read_text()

    return Reloaded([path], read)


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "file"
    path.write_text("one")
    reloaded = reload(path)
    assert [reloaded.get() for _ in range(3)] == ["one"] * 3
    assert not caplog.records
    path.write_text("three")
    assert [reloaded.get() for _ in range(3)] == ["three"] * 3
    assert [record.getMessage() for record in caplog.records] == [f"read again: {path}"]


def test_a_file_that_takes_the_place_of_another_is_seen(tmp_path: Path) -> None:
    """As `mv` and Kubernetes' mounts change files: all at once, and perhaps with as many bytes."""
    versions = [tmp_path / "first", tmp_path / "second"]
    for version, text in zip(versions, ("one", "two"), strict=True):
        version.write_text(text)
    path, link = tmp_path / "file", tmp_path / "link"
    path.symlink_to(versions[0])
    reloaded = reload(path)
    assert reloaded.get() == "one"
    link.symlink_to(versions[1])
    link.replace(path)
    assert reloaded.get() == "two"


def test_a_file_that_is_gone_leaves_what_it_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    reloaded = reload(path)
    path.unlink()
    assert [reloaded.get() for _ in range(2)] == ["one"] * 2
    assert [record.getMessage() for record in caplog.records] == [f"the files read before stay in use: {path} is gone"]
    path.write_text("two")
    assert reloaded.get() == "two"


def test_a_file_that_could_not_be_read_is_read_when_it_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tokens file without the token of one who has left, copied by root: its owner is no change of what it says."""
    path, owned = tmp_path / "file", tmp_path / "owned"
    path.write_text("one")

    def read() -> str:
        if not path.stat().st_mode & 0o044:
            raise UsageError(f"{path} may not be read")
        return path.read_text()

    path.chmod(0o644)
    reloaded = Reloaded([path], read)
    owned.write_text("two")
    owned.chmod(0o600)
    owned.replace(path)
    assert [reloaded.get() for _ in range(3)] == ["one"] * 3
    path.chmod(0o644)
    wait_until(lambda: reloaded.get() == "two")
    path.write_text("three")
    assert reloaded.get() == "three"
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"the files read before stay in use: {path} may not be read"]


def test_a_file_that_is_not_there_at_first_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is gone"):
        reload(tmp_path / "nowhere")
