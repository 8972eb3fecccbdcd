"""`fcnseg token`: make a token for a client of a server that asks for one."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(0.001, 1e6),
    help="Most requests per second; each request of a stream counts as one. [default: no limit]",
)
@click.option(
    "--concurrent",
    metavar="N",
    type=click.IntRange(1, 1_000_000),
    help="Most calls at a time; a stream counts as one. [default: no limit]",
)
@click.option("--admin", is_flag=True, help="Let the client load and unload models.")
@click.option(
    "--append",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Append the line to this token file, and print only the token.",
)
def token(*, name: str, rate: float | None, concurrent: int | None, admin: bool, file: Path | None) -> None:
    """Make a random access token for the client NAME.

    The token is printed once and stored nowhere: give it to the client. The line printed with it, which holds only a
    hash of the token, goes into the file that 'fcnseg serve --tokens FILE' reads. Remove the line to revoke the token.

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
