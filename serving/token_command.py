"""`fcnseg token`: make a token for a client of a server that asks for one."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0.001, 1e6),
    help="Requests a second, each request of a stream being one. [default: any number]",
)
@click.option(
    "--concurrent",
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    help="Calls at a time, each stream being one. [default: any number]",
)
@click.option("--admin", is_flag=True, help="It may load and unload models.")
@click.option(
    "--append",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Add the line to this file of tokens, and print the token alone.",
)
def token(*, name: str, rate: float | None, concurrent: int | None, admin: bool, file: Path | None) -> None:
    """Make a random token for the client NAME.

    The token is shown this once and kept nowhere: it is for the client. Its line, which holds a hash of it, is for the
    file that 'fcnseg serve --tokens FILE' reads. Take the line away, and the token is worth nothing.

    Example: fcnseg token camera-1 --rate 5 --append tokens.txt > camera-1.token
    """
    from serving.tokens import append_token, make_token

    secret, made = make_token(name, rate=rate, concurrent=concurrent, admin=admin)
    if file is None:
        click.echo(f"token for the client:         {secret}")
        click.echo(f"line for the server's tokens: {made.line}")
    else:
        append_token(file, made)
        click.echo(secret)
