"""`fcnseg` as a user meets it, in the tests' own process."""

import sys

import pytest

from fcnseg.cli import main


class Terminal:
    """Runs commands in this process, where torch is imported once."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def run(self, *args: object) -> tuple[object, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fcnseg", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code, *self._capsys.readouterr()

    def refused(self, *args: object) -> str:
        code, _, stderr = self.run(*args)
        assert code == 2, stderr
        last = stderr.strip().splitlines()[-1]
        assert last.startswith("fcnseg: error: ")
        assert "Traceback" not in stderr
        return last
