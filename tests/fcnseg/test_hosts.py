import pytest

from fcnseg.errors import UsageError
from fcnseg.hosts import is_loopback, read_hosts


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "[::]", "10.0.0.1", "example.org", "localhost.example.org"])  # noqa: S104 - that is the point
def test_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("server", "hosts"),
    [
        ("example.org:50051", ("example.org",)),
        ("[::1]:50051", ("[::1]",)),
        ("dns:///example.org:50051", ("dns:///example.org",)),
        ("dns://10.0.0.1/localhost:50051", ("dns://10.0.0.1/localhost",)),
        ("ipv4:127.0.0.1:1,10.0.0.1:65535", ("127.0.0.1", "10.0.0.1")),
        ("ipv6:[::1]:1,[2001:db8::1]:2", ("[::1]", "[2001:db8::1]")),
    ],
)
def test_hosts_of_an_address(server: str, hosts: tuple[str, ...]) -> None:
    assert read_hosts(server) == hosts


@pytest.mark.parametrize(
    "server",
    [
        "example.org",
        "example.org:0",
        "https:1",
        "https://example.org:1",
        "a:1,b:2",
        "two words:1",
        "dns:///:1",
        "dns:///a/b:1",
        "xds:///a:1",
        "ipv4:",
        "ipv4:localhost:1",
        "ipv4:127.0.0.1",
        "ipv4:127.0.0.1:1,",
        "ipv4:127.0.0.1:1,127.0.0.1:x",
        "ipv4:[127.0.0.1]:1",
        "ipv4:[::1]:1",
        "ipv6:::1:1",
        "::1:50051",
        "2001:db8::5:50051",
        "dns:///::1:1",
        "ipv6:127.0.0.1:1",
    ],
)
def test_what_is_no_address_is_refused_in_a_line(server: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT") as caught:
        read_hosts(server)
    assert "\n" not in str(caught.value)
