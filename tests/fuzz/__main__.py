"""`make fuzz`: try every target with ever other examples for some minutes, and end with 1 where a law was broken."""

import os
import random
import subprocess
import sys
import time

import click

_SHARE = "20"


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="How long, about.")
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENTS OF PYTEST]")
def main(minutes: float, arguments: tuple[str, ...]) -> None:
    """Run the tests of tests/fuzz again and again, each time with other examples, until the time is over."""
    end = time.monotonic() + minutes * 60
    rounds = 0
    while time.monotonic() < end or not rounds:
        rounds += 1
        seed = random.getrandbits(32)
        click.echo(f"round {rounds}, seed {seed}: {_SHARE} times the examples of 'make test'")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/fuzz",
            f"--hypothesis-seed={seed}",
            "--durations=0",
            *arguments,
        ]
        # A native hang has no other end: where a test takes so long, its stack is shown.
        command += ["-o", "faulthandler_timeout=600"]
        done = subprocess.run(command, env={**os.environ, "FCNSEG_FUZZ": _SHARE}, check=False)
        if done.returncode:
            click.echo(f"round {rounds} broke a law; mend it, with a test of its own")
            sys.exit(1)
    click.echo(f"{rounds} rounds, and no law was broken")


if __name__ == "__main__":
    main()
