"""Fixtures that any test may use."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from tests.certificates import Authority

settings.register_profile("no-deadline", deadline=None)  # a busy machine takes its time
settings.load_profile("no-deadline")


def pytest_configure() -> None:
    """Let interrupts through where they are ignored, as they are for what a script starts in the background.

    Processes that tests start, and interrupt, would ignore them too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Take back what a command that runs in the tests' own process does to the log."""
    own, transport = logging.getLogger("serving"), logging.getLogger("grpc._cython.cygrpc")
    formatters = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    level, filters = own.level, transport.filters.copy()
    yield
    for handler, formatter in formatters:
        handler.setFormatter(formatter)
    own.setLevel(level)
    transport.filters[:] = filters


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a model file of three classes: red, green and blue."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is not there")
    return folder


@pytest.fixture
def authority(tmp_path: Path) -> "Authority":
    """An authority whose certificates lie in the test's folder."""
    from tests.certificates import Authority

    return Authority(tmp_path, "ours")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread: nets this small are slower with more, by far where something else is running."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
