"""Versions of installed packages."""

import importlib.metadata

from fcnseg.installed import installed_versions


def test_what_is_installed_has_its_version_and_what_is_not_is_left_out() -> None:
    assert installed_versions(["numpy", "no-such-package"]) == {"numpy": importlib.metadata.version("numpy")}
