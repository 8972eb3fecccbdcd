"""Find the hosts in a server's address, and whether they are this machine, so that data sent to them stays on it."""

import ipaddress
import re

from fcnseg.errors import UsageError

_HOST = re.compile(r"(dns:(//[^/,\s]*/)?)?(?!https?$)([^/,:\s]+|\[[^/,\s]*)")  # else gRPC's port would be another
_LIST = re.compile(r"ipv[46]:")


def read_hosts(server: str) -> tuple[str, ...]:
    """Return the hosts of an address, in any of gRPC's forms.

    Args:
        server: `HOST:PORT`, with an IPv6 address in brackets, or `dns:///HOST:PORT`; several addresses as
            `ipv4:ADDRESS:PORT,...` or `ipv6:[ADDRESS]:PORT,...`.

    Returns:
        The hosts as they are written in the address. A host of a `dns:` address keeps that prefix and is not taken for
        this machine, since the address may name any name server for the look-up.

    Raises:
        UsageError: The address has none of these forms.
    """
    if _LIST.match(server):
        version = int(server[3])
        addresses = [address.rpartition(":") for address in server[len("ipv4:") :].split(",")]
        if all(_is_address(host, version) and _is_port(port) for host, _, port in addresses):
            return tuple(host for host, _, _ in addresses)
    else:
        host, _, port = server.rpartition(":")
        if _HOST.fullmatch(host) and _is_port(port):
            return (host,)
    raise UsageError(
        f"server address {server!r} is not HOST:PORT with a port of 1 to 65535, such as 127.0.0.1:50051, nor several as"
        " ipv4:ADDRESS:PORT,ADDRESS:PORT"
    )


def is_loopback(host: str) -> bool:
    """Tell whether a host is `localhost` or a loopback address, such as `127.0.0.1`, `::1` or `[::1]`.

    No name is looked up, because its address may change between the look-up and the connection.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def join_port(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_address(host: str, version: int) -> bool:
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (version == 6) != (inner != host):
        return False
    try:
        return ipaddress.ip_address(inner).version == version
    except ValueError:
        return False


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
