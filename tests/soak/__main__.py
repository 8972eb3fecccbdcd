"""`make soak`: soak a server for some minutes, tell how it goes, and end with 1 where a law was broken."""

import sys
import tempfile
import time
from pathlib import Path

import click

from tests.soak.run import soak


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Minutes of load.")
@click.option("--seed", default=0, show_default=True, help="What the random choices follow from.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for models and the server's log. [default: none]")
@click.argument("options", nargs=-1, metavar="[-- OPTIONS OF SERVE]")
def main(minutes: float, seed: int, keep: Path | None, options: tuple[str, ...]) -> None:
    """Soak `fcnseg serve` with requests, faults, reloads and strangers."""
    began = time.monotonic()

    def tell(line: str) -> None:
        click.echo(f"[{time.monotonic() - began:5.0f} s] {line}")

    with tempfile.TemporaryDirectory(prefix="fcnseg-soak-") as folder:
        if keep:
            keep.mkdir(parents=True)
        report = soak(keep or Path(folder), minutes * 60, seed, tell, options=options)
    click.echo(str(report))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
