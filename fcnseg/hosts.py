"""Which hosts are this machine itself, so that what is sent to them crosses no network."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether a host is `localhost` or a loopback address, such as `127.0.0.1`, `::1` or `[::1]`.

    No name is looked up: what another name stands for may change between the look-up and the connection.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
