from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fcnseg.commands.options import Bytes, SectionedCommand
from fcnseg.commands.segment import segment


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


@click.command()
@click.option("--memory", type=Bytes(1), default=7)
def limited(memory: int) -> None:
    click.echo(f"{memory} bytes")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--memory", "8388608"], "8388608 bytes"),
        (["--memory", "8MiB"], "8388608 bytes"),
        (["--memory", "2GB"], "2000000000 bytes"),
        ([], "7 bytes"),
        (["--memory", "0"], "0 is too few bytes; give at least 1"),
        (["--memory", "-5"], "-5"),
        (["--memory", "much"], "'much' is no number of bytes, such as 8388608, 8MiB or 2GB"),
    ],
)
def test_bytes_are_told_in_any_unit(given: list[str], told: str) -> None:
    assert told in CliRunner().invoke(limited, given).output


def test_an_empty_output_does_not_stand_for_the_folder_that_one_is_in(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = CliRunner().invoke(segment, [str(tiny_model), str(tmp_path), ""])
    assert done.exit_code == 2
    assert "Invalid value for 'OUTPUT': its name is empty; name a file or a folder" in done.output
