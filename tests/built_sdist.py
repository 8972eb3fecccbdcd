"""See that a source distribution holds what the repository does, but for what is not for every use.

Run it: python tests/built_sdist.py DIST/fcnseg-VERSION.tar.gz
"""

import subprocess
import sys
import tarfile
from pathlib import Path

KEPT_OUT = (".ci/", "results/")


def main() -> None:
    tree = Path(__file__).parent.parent
    if not (tree / ".git").exists():
        print("no repository tells what the source distribution ought to hold")  # noqa: T201
        return
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout.split("\0")
    expected = {name for name in listed if (tree / name).is_file() and not name.startswith(KEPT_OUT)}
    with tarfile.open(sys.argv[1]) as archive:
        held = {member.name.partition("/")[2] for member in archive} - {"PKG-INFO"}
    assert held == expected, f"lacks {sorted(expected - held)}, and ought not to hold {sorted(held - expected)}"
    print(f"{len(held)} files are in the source distribution")  # noqa: T201


if __name__ == "__main__":
    main()
