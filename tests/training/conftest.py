"""Fixtures of the tests of training."""

import pytest

from tests.training.terminal import Terminal


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A user's terminal."""
    return Terminal(capsys, monkeypatch)
