import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcnseg.errors import UsageError
from fcnseg.files import replacing, require_place, write_bytes, write_text
from tests.disks import small_disk


def test_a_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "größe")
    assert (tmp_path / "a" / "b.txt").read_text("utf-8") == "größe"
    write_bytes(tmp_path / "a" / "b.txt", b"two")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            assert temporary.suffix == ".png"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    """Neither by the temporary file's name, nor not at all, as where the disk is full."""
    with small_disk(tmp_path / "disk", "16k"):
        with pytest.raises(OSError, match=r"No space left on device: '.*mask\.png'$"):
            write_bytes(tmp_path / "disk" / "mask.png", bytes(2**16))
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with pytest.raises(OSError, match=r"Read-only file system: '.*disk/mask\.png'$"):
            write_bytes(tmp_path / "disk" / "mask.png", b"")


@pytest.mark.skipif(os.name != "posix", reason="signals and modes are POSIX")
def test_a_killed_write_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    code = (
        "import sys, time, pathlib; from fcnseg.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert all(left.name.startswith(".") for left in tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals and modes are POSIX")
def test_files_written_in_threads_have_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write_bytes(tmp_path / f"{i}.png", b"x"), range(200)))
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_place_where_no_file_can_stand_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a folder"):
        write_bytes(tmp_path, b"")
    with pytest.raises(UsageError, match="file is not a folder"):
        write_bytes(tmp_path / "file" / "below" / "it.png", b"")
    require_place(tmp_path / "new" / "folder" / "it.png")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
