"""The options of `fcnseg serve` that close the server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnseg.commands.options import Command, add_options

if TYPE_CHECKING:
    from serving.security import Security

_FILE = click.Path(path_type=Path)


def security_options(command: Command) -> Command:
    """Add --tls-cert, --tls-key, --tls-client-ca, --tokens, --open-admin, --no-admin and --no-reflection."""
    return add_options(
        command,
        click.option(
            "--tls-cert",
            metavar="FILE",
            type=_FILE,
            help="Encrypt connections with this server certificate (PEM), followed by any intermediate certificates."
            " Read again when it changes.",
        ),
        click.option("--tls-key", metavar="FILE", type=_FILE, help="Private key (PEM) of --tls-cert."),
        click.option(
            "--tls-client-ca",
            metavar="FILE",
            type=_FILE,
            help="Accept only clients with a certificate that an authority in this PEM file has signed.",
        ),
        click.option(
            "--tokens",
            metavar="FILE",
            type=_FILE,
            help="Accept only requests with an access token of this file, whose lines 'fcnseg token' makes. Read again"
            " when it changes.",
        ),
        click.option(
            "--open-admin",
            is_flag=True,
            help="Let anyone who can reach the port load and unload models, from other machines too.",
        ),
        click.option("--no-admin", is_flag=True, help="Do not let anyone load and unload models."),
        click.option(
            "--no-reflection", is_flag=True, help="Switch off gRPC server reflection, which describes the services."
        ),
    )


def open_security(
    *,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    open_admin: bool,
    no_admin: bool,
    no_reflection: bool,
) -> "Security":
    """Return how the options close the server.

    Raises:
        UsageError: A file cannot be used, or options contradict each other.
    """
    from serving.security import Security
    from serving.tls import open_tls
    from serving.tokens import Tokens

    return Security(
        tls=open_tls(tls_cert, tls_key, tls_client_ca),
        tokens=None if tokens is None else Tokens(tokens),
        admin_closed_by="--no-admin" if no_admin else None,
        open_admin=open_admin,
        reflection=not no_reflection,
    )
