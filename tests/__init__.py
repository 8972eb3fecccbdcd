"""Tests, by the package they are of, and what several of them share."""

import pkgutil

import pytest

# Shared modules say what an assertion of theirs compared, as tests do.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
