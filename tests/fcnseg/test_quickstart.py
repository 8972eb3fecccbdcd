from pathlib import Path

from click.testing import CliRunner

from fcnseg.commands.quickstart import quickstart
from fcnseg.errors import UsageError


def test_nothing_is_cleared_away_that_no_quickstart_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.ckpt").write_bytes(b"mine")
    result = CliRunner().invoke(quickstart, ["-o", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(f"{tmp_path / 'run'} is there, and no quickstart made it; name another")
    assert (tmp_path / "run" / "best.ckpt").read_bytes() == b"mine"
