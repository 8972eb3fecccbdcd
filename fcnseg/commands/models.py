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
            "--server", metavar="HOST:PORT", default="127.0.0.1:50051", show_default=True, help="Address of the server."
        ),
        click.option(
            "--timeout",
            "timeout_s",
            default=120.0,
            show_default=True,
            type=click.FloatRange(min=0, min_open=True),
            help="Seconds to wait for the answer, which includes opening and warming up models.",
        ),
        access_options,
    )


@click.group()
def models() -> None:
    """List, load, unload and reload the models of a running server.

    Example: fcnseg models list --server 127.0.0.1:50051
    """


@models.command("list")
@_server_options
def list_(**access: Any) -> None:
    """List the served models, with their versions, devices and classes.

    Example: fcnseg models list --server 127.0.0.1:50051
    """
    with open_client(**access) as client:
        _show(client.list_models())


@models.command()
@click.argument("name")
@_server_options
def load(name: str, **access: Any) -> None:
    """Load the model NAME as the server's repository has it now.

    New and changed versions are opened, and removed ones are closed. The old versions keep answering until the new ones
    are warm. If a version cannot be opened, nothing changes.

    \b
    Example: fcnseg models load cat --server 127.0.0.1:50051 --token-file operator.token
    """
    with open_client(**access) as client:
        _show(client.load_model(name))


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Unload only this version. [default: all versions]")
@_server_options
def unload(name: str, version: str, **access: Any) -> None:
    """Stop serving the model NAME until it is loaded again.

    Requests in progress are still answered. A server started with --watch loads the model again at its next check.

    Example: fcnseg models unload cat --version 2 --server 127.0.0.1:50051
    """
    with open_client(**access) as client:
        _show(client.unload_model(name, version))


@models.command()
@click.argument("name")
@_server_options
def reload(name: str, **access: Any) -> None:
    """Reopen the model NAME, even if its files have not changed.

    The model must be served already; apart from that, this works like 'fcnseg models load'.

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
