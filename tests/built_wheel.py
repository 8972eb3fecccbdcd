"""See that the installed wheel holds the packages' files, and that fcnseg and serving import without torch.

Run it, in the wheel's environment: python -P tests/built_wheel.py
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import fcnseg
import serving

TREE, SITE = Path(__file__).parent.parent, Path(fcnseg.__file__).parent.parent


def main() -> None:
    assert importlib.util.find_spec("torch") is None, "torch is installed"
    assert SITE != TREE, "this is the tree, not the wheel"
    files = [
        path.relative_to(TREE) for name in ("fcnseg", "serving", "training") for path in (TREE / name).rglob("*.*")
    ]
    missing = [str(file) for file in files if file.suffix != ".pyc" and not (SITE / file).exists()]
    assert not missing, f"the wheel lacks {missing}"
    found = [
        module
        for package in (fcnseg, serving)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    names = [module.name for module in found if not module.name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules of fcnseg and serving import without torch")  # noqa: T201


if __name__ == "__main__":
    main()
