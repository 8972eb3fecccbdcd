import copy
import pickle

import pytest

import fcnseg.errors
from fcnseg.errors import (
    FcnsegError,
    FieldViolation,
    InvalidRequestError,
    RequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    UsageError,
    one_line,
)


def test_the_tree_in_the_module_docstring_is_the_tree_in_the_code() -> None:
    drawn = []
    parents = [FcnsegError]
    for line in (fcnseg.errors.__doc__ or "").splitlines():
        mark = max(line.find("├── "), line.find("└── "))
        if mark < 0:
            continue
        error = getattr(fcnseg.errors, line[mark + 4 :].split()[0])
        depth = mark // 4 + 1
        del parents[depth:]
        assert error.__bases__ == (parents[-1],)
        parents.append(error)
        drawn.append(error)
    defined = [e for e in vars(fcnseg.errors).values() if isinstance(e, type) and issubclass(e, FcnsegError)]
    assert set(drawn) == set(defined) - {FcnsegError}


def test_every_error_knows_an_exit_code_of_failure() -> None:
    errors = [e for e in vars(fcnseg.errors).values() if isinstance(e, type) and issubclass(e, FcnsegError)]
    assert {error.exit_code for error in errors} == {1, 2}


@pytest.mark.parametrize(
    "error",
    [
        UsageError("batch is 0"),
        RequestError("no", "INTERNAL", "image"),
        InvalidRequestError("no", (FieldViolation("raw.rgb", "too short"),)),
        ServerOverloadedError("no", 1.5),
        RequestTimeoutError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_whole_from_another_process(error: FcnsegError) -> None:
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.args == error.args
        assert vars(found) == vars(error)


def test_what_another_library_says_goes_on_one_line() -> None:
    assert one_line(OSError("no\n  room\tleft ")) == "no room left"
    assert one_line("no\nroom", 4) == "no r"
