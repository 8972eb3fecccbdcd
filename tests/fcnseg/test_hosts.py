import pytest

from fcnseg.hosts import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "[::]", "10.0.0.1", "example.org", "localhost.example.org"])  # noqa: S104 - that is the point
def test_others(host: str) -> None:
    assert not is_loopback(host)
