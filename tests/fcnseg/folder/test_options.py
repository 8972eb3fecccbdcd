from typing import Any

import pytest

from fcnseg.errors import UsageError
from fcnseg.folder import FolderOptions


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ({"top": -1}, "top is -1; it must be at least 0"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"batch": -1}, "batch is -1; it must be at least 0"),
        ({"in_flight": 0}, "in_flight is 0; it must be at least 1"),
        ({"memory_bytes": 0}, "memory_bytes is 0; it must be at least 1"),
        ({"tile": 0}, "tiles of 0 pixels were asked for; they must have at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(number: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FolderOptions(**number)
