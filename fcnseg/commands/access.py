"""What commands that ask a server share: the options by which it lets them in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnseg.commands.options import Command, add_options

if TYPE_CHECKING:
    from fcnseg.client import Client
    from fcnseg.tls import ClientTls

_TOKEN_VARIABLE = "FCNSEG_TOKEN"  # noqa: S105 - a variable's name
_FILE = click.Path(path_type=Path)


def access_options(command: Command) -> Command:
    """Add --tls, --ca, --cert, --key, --token-file and --token-in-clear."""
    return add_options(
        command,
        click.option(
            "--tls",
            is_flag=True,
            help="Use TLS, and accept a server certificate that a public certificate authority has signed.",
        ),
        click.option(
            "--ca",
            metavar="FILE",
            type=_FILE,
            help="Use TLS, and accept a server certificate that an authority in this PEM file has signed.",
        ),
        click.option("--cert", metavar="FILE", type=_FILE, help="Use TLS, and present this client certificate (PEM)."),
        click.option("--key", metavar="FILE", type=_FILE, help="Private key (PEM) of --cert."),
        click.option(
            "--token-file",
            metavar="FILE",
            type=_FILE,
            help="File with the access token to send."
            f" [default: the token in the environment variable {_TOKEN_VARIABLE}]",
        ),
        click.option(
            "--token-in-clear", is_flag=True, help="Send the token even to another machine without TLS, unencrypted."
        ),
    )


@contextmanager
def open_client(
    server: str,
    *,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    token_in_clear: bool,
    **settings: Any,
) -> "Iterator[Client]":
    """Have a client of a server that the options let in; `settings` are the client's own, such as `timeout_s`.

    Raises:
        UsageError: An option has no valid value.
        UnauthenticatedError: The server wants another token, or one; the message names the option.
    """
    from fcnseg.client import Client
    from fcnseg.errors import UnauthenticatedError

    client = Client(
        server,
        tls=_read_tls(tls=tls, ca=ca, cert=cert, key=key),
        token=_read_token(token_file),
        token_in_clear=token_in_clear,
        **settings,
    )
    try:
        with client:
            yield client
    except UnauthenticatedError as error:
        raise UnauthenticatedError(f"{error} (here by --token-file FILE, or {_TOKEN_VARIABLE})") from error


def _read_tls(*, tls: bool, ca: Path | None, cert: Path | None, key: Path | None) -> "ClientTls | bool":
    """Return how the options encrypt; a file asks for TLS too."""
    from fcnseg.tls import ClientTls

    if ca is None and cert is None and key is None:
        return tls
    return ClientTls(ca, cert, key)


def _read_token(file: Path | None) -> str | None:
    """Return the token of a file, or else of the environment; None where there is neither.

    It is no option of its own, since other users of the machine see a program's arguments.

    Raises:
        UsageError: The file cannot be read, or is empty.
    """
    from fcnseg.errors import UsageError

    if file is None:
        return os.environ.get(_TOKEN_VARIABLE, "").strip() or None
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"token file {file} cannot be read: {reason}; give one that holds a token") from error
    if not token:
        raise UsageError(f"token file {file} is empty; write the token of 'fcnseg token' into it")
    return token
