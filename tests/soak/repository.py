"""The models that a soak serves, and how they come, change, break and go while it runs."""

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import fcnseg
from fcnseg.files import replacing
from fcnseg.segmenter import Segmenter
from tests.tiny_model import write_tiny_model

_GOLDEN = Path(__file__).parent.parent / "golden" / "scenes-fcn8s.onnx"
STEADY = ("tiny", "many", "slow", "scenes")
"""Models that stay as they are."""
CHURN = "churn"
"""The model whose versions come and go."""
BROKEN = "broken"
"""A model none of whose files can be opened."""


class Repository:
    """A folder of NAME/VERSION/model.onnx and the offline models of its files.

    Args:
        folder: Where to make it.
        rng: Decides what happens next.

    Attributes:
        folder: What the server is given.
        changes: How often each change was made.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder / "repository"
        self._rng = rng
        self._files = {
            "tiny": write_tiny_model(folder / "nets" / "tiny.onnx"),
            "many": write_tiny_model(folder / "nets" / "many.onnx", class_count=257),
            "slow": write_tiny_model(folder / "nets" / "slow.onnx", class_count=70, work_rounds=40),
            "scenes": _GOLDEN,
        }
        self._segmenters = {name: fcnseg.load(file, "cpu", threads=1) for name, file in self._files.items()}
        self._nets: dict[int, str] = {}  # of the versions of `CHURN` that there have ever been
        self._present: list[int] = []
        self._broken_version: int | None = None
        self.changes: dict[str, int] = {}
        for name in STEADY:
            self._put(self._files[name], name, 1)
        self._add()

    def segmenter(self, name: str, version: str) -> Segmenter:
        """Return the offline model of what a server answered with."""
        return self._segmenters[self._nets[int(version)] if name == CHURN else name]

    def churn(self, stopping: threading.Event, pause_s: float) -> None:
        """Change something now and then."""
        while not stopping.wait(self._rng.uniform(0.3, 1.7) * pause_s):
            self._drop_broken()
            change = self._rng.choice(
                [self._add, self._remove, self._touch, self._break, self._break_next, self._leave]
            )
            self._count(change)
            change()

    def settle(self) -> None:
        """Leave one new version of one net, and nothing that is broken."""
        self._drop_broken()
        self._clear()
        self._add("tiny")

    @property
    def served(self) -> set[tuple[str, str]]:
        """Names and versions that a server serves when the repository is settled."""
        return {*((name, "1") for name in STEADY), (CHURN, str(self._present[-1]))}

    def _count(self, change: Callable[[], None]) -> None:
        name = change.__name__.strip("_")
        self.changes[name] = self.changes.get(name, 0) + 1

    def _add(self, net: str | None = None) -> None:
        version = len(self._nets) + 1
        self._nets[version] = net or self._rng.choice(STEADY)
        self._put(self._files[self._nets[version]], CHURN, version)
        self._present.append(version)
        if len(self._present) > 3:
            self._remove()

    def _remove(self) -> None:
        """Take the oldest version away, which may be the only one."""
        if self._present:
            shutil.rmtree(self.folder / CHURN / str(self._present.pop(0)))

    def _touch(self) -> None:
        """Put a file's like in its place."""
        if self._present:
            version = self._rng.choice(self._present)
            self._put(self._files[self._nets[version]], CHURN, version)

    def _break(self) -> None:
        self._put(self._damaged(), BROKEN, self._rng.randint(1, 3))

    def _break_next(self) -> None:
        """Let a broken version appear, until the next change: the other versions stay as they are meanwhile."""
        version = len(self._nets) + 1
        self._nets[version] = BROKEN  # a server that answers with it is told by a KeyError
        self._put(self._damaged(), CHURN, version)
        self._broken_version = version

    def _drop_broken(self) -> None:
        shutil.rmtree(self.folder / BROKEN, ignore_errors=True)
        if self._broken_version is not None:
            shutil.rmtree(self.folder / CHURN / str(self._broken_version), ignore_errors=True)
            self._broken_version = None

    def _leave(self) -> None:
        """Take the model away altogether."""
        self._clear()

    def _clear(self) -> None:
        self._present.clear()
        shutil.rmtree(self.folder / CHURN, ignore_errors=True)

    def _damaged(self) -> bytes:
        data = self._files[self._rng.choice(STEADY)].read_bytes()
        return self._rng.choice([b"", self._rng.randbytes(1000), data[: len(data) // 2], b"\x00" * 5000])

    def _put(self, content: Path | bytes, name: str, version: int) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        with replacing(self.folder / name / str(version) / "model.onnx") as temporary:
            temporary.write_bytes(data)
