import click
from click.testing import CliRunner

from fcnseg.commands.options import SectionedCommand


@click.command(cls=SectionedCommand, sections={"host": "Address", "limit": "Limits"})
@click.argument("model")
@click.option("--host")
@click.option("--port")
@click.option("--limit")
def command(**_: object) -> None:
    """Do something."""


def test_options_are_listed_under_headings_in_their_order() -> None:
    lines = CliRunner().invoke(command, ["--help"]).output.splitlines()
    listed = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -") or line.endswith(":")]
    assert listed == ["Address:", "--host", "--port", "Limits:", "--limit", "Help:", "--help"]
