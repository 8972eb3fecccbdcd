"""`fcnseg models`: what a server serves, and changing it while it runs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from fcnseg.commands.access import access_options, open_client
from fcnseg.commands.options import Command, add_options
from fcnseg.words import first_of

if TYPE_CHECKING:
    from fcnseg.remote import RemoteModel

_CLASSES_NAMED = 5


def _server_options(command: Command) -> Command:
    """Add --server, --timeout and the options of access."""
    return add_options(
        command,
        click.option(
            "--server", metavar="HOST:PORT", default="127.0.0.1:50051", show_default=True, help="The server's address."
        ),
        click.option(
            "--timeout",
            "timeout_s",
            default=120.0,
            show_default=True,
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds to wait for the answer: models are opened and warmed meanwhile.",
        ),
        access_options,
    )


@click.group()
def models() -> None:
    """Show what a server serves, and load, unload and reload its models while it runs.

    Example: fcnseg models list --server 127.0.0.1:50051
    """


@models.command("list")
@_server_options
def list_(**access: Any) -> None:
    """List what is served: models, versions, devices, classes.

    Example: fcnseg models list --server 127.0.0.1:50051
    """
    with open_client(**access) as client:
        _show(client.list_models())


@models.command()
@click.argument("name")
@_server_options
def load(name: str, **access: Any) -> None:
    """Serve what the repository holds of NAME now.

    Versions that are new or have changed are opened; those that are gone are closed. What is served answers until the
    new versions are warm. If one of them cannot be opened, all stays as it was.

    \b
    Example: fcnseg models load cat --server 127.0.0.1:50051 --token-file operator.token
    """
    with open_client(**access) as client:
        _show(client.load_model(name))


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Only this version. [default: all]")
@_server_options
def unload(name: str, version: str, **access: Any) -> None:
    """Take NAME from service until it is loaded again.

    Requests under way are answered. A server with --watch loads it again at its next look.

    Example: fcnseg models unload cat --version 2 --server 127.0.0.1:50051
    """
    with open_client(**access) as client:
        _show(client.unload_model(name, version))


@models.command()
@click.argument("name")
@_server_options
def reload(name: str, **access: Any) -> None:
    """Open NAME anew, whether its files changed or not.

    It must be served already; else this is as load.

    Example: fcnseg models reload cat --server 127.0.0.1:50051
    """
    with open_client(**access) as client:
        _show(client.reload_model(name))


def _show(served: Iterable["RemoteModel"]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in ("model", "version", "device", "variant", "classes"):
        table.add_column(column, overflow="fold")
    for model in served:
        names = first_of([info.name for info in model.classes], _CLASSES_NAMED)
        table.add_row(
            escape(model.name),
            model.version,
            model.device,
            escape(f"{model.variant} of {model.architecture}"),
            f"{len(model.classes)}: {escape(names)}",
        )
    if table.row_count:
        Console().print(table)
    else:
        click.echo("no model is served; load one with 'fcnseg models load NAME'")
