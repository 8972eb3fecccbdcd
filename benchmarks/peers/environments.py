"""The servers' virtual environments: `python benchmarks/peers/environments.py [PEER...] [--python PYTHON]` makes them.

Each is made from the requirements.txt beside the peer's server, in the folder FCNSEG_PEERS (fcnseg/peers in the cache
folder by default), where it is kept until the requirements change; all together take 2 GB. Debian's own Python makes
them (apt install python3-venv libpython3.11): Triton's backend starts the system's interpreter, and the others have the
same, fcnseg among them, since one that is built otherwise may be half as fast again.
"""

import argparse
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
FOLDER = Path(os.environ.get("FCNSEG_PEERS", _CACHE / "fcnseg" / "peers"))
ENVIRONMENTS = tuple(sorted(path.parent.name for path in _HERE.glob("*/requirements.txt")))


@dataclass(frozen=True)
class Environment:
    """A server's virtual environment, whether it is made or not.

    Attributes:
        name: The folder of its requirements.
    """

    name: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def is_made(self) -> bool:
        """Whether it is there, made from the requirements as they are now."""
        return self._made_from.exists() and self._made_from.read_bytes() == self._requirements.read_bytes()

    def make(self, python: str) -> None:
        """Make it anew."""
        subprocess.run([python, "-m", "venv", "--clear", self.folder], check=True)
        options = ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "-r", str(self._requirements)]
        subprocess.run([str(self.python), "-m", "pip", "install", *options], check=True, cwd=_ROOT)
        self._made_from.write_bytes(self._requirements.read_bytes())

    def versions(self) -> dict[str, str]:
        """What is installed in it."""
        command = [str(self.python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {package["name"]: package["version"] for package in json.loads(text)}

    def python_version(self) -> str:
        """The version of its Python, such as `3.11.2`."""
        command = [str(self.python), "-c", "import platform; print(platform.python_version())"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @property
    def _requirements(self) -> Path:
        return _HERE / self.name / "requirements.txt"

    @property
    def _made_from(self) -> Path:
        return self.folder / "requirements.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
    parser.add_argument("--python", default="/usr/bin/python3", help="that makes them (/usr/bin/python3)")
    arguments = parser.parse_args()
    if unknown := set(arguments.peers) - set(ENVIRONMENTS):
        parser.error(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    for name in arguments.peers or ENVIRONMENTS:
        environment = Environment(name)
        if not environment.is_made:
            print(f"making {environment.folder}", flush=True)
            environment.make(arguments.python)


if __name__ == "__main__":
    main()
