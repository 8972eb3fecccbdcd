"""Asking a server of this machine over HTTP, as probes and scrapes do."""

from http.client import HTTPConnection, HTTPException

_OK = 200
_LONGEST_S = 5.0


def read(address: str, path: str) -> str:
    """Return what a server answers; no proxy is asked, whatever the environment says of proxies.

    Args:
        address: Where it answers, as HOST:PORT.
        path: What to ask for, such as `/readyz`.

    Raises:
        OSError: It refuses, does not answer in time, or breaks off.
    """
    connection = HTTPConnection(address, timeout=_LONGEST_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
    except HTTPException as error:
        raise OSError(f"{address} did not answer in valid HTTP") from error
    finally:
        connection.close()
    if answer.status != _OK:
        raise OSError(f"{address} answers {path} with {answer.status}")
    return text
