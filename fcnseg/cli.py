"""The `fcnseg` command: a group whose subcommands are found through the entry-point group `fcnseg.commands`.

The core knows none of them by import: `serve` comes from serving, `train` or `heatmap` from training. A command's
module imports heavy packages inside its function, so that --help is quick and works without them.
"""

import errno
import importlib.metadata
import logging
import os
import re
import sys
import traceback
from pathlib import Path

import click

from fcnseg.errors import FcnsegError, one_line
from fcnseg.files import shown

_GROUP = "fcnseg.commands"
_EXTRA_OF = {"training": "train", "serving": "serve", "serving.spans": "tracing"}
_INTERRUPTED = 130
_RANGE = re.compile(r"is not a valid (integer|float)(?: range)?(?=$|\.)")
_REMEDIES = {
    errno.ENOSPC: "; make room, and run the command again",
    errno.EDQUOT: "; make room, and run the command again",
    errno.EROFS: "; choose another place",
    errno.EACCES: "; let this user into it, or choose another place",
}
_NUMBERS = {"integer": "a whole number", "float": "a number"}

_log = logging.getLogger(__name__)


class _LineFormatter(logging.Formatter):
    """Format as `fcnseg: LEVEL: MESSAGE`, after the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"fcnseg: {record.levelname.lower()}: {record.getMessage()}"
        return f"{self.formatException(record.exc_info)}\n{line}" if record.exc_info else line


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(importlib.metadata.entry_points(group=_GROUP).names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        for entry in importlib.metadata.entry_points(group=_GROUP, name=cmd_name):
            command: click.Command = entry.load()
            return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the purpose of each command as a whole sentence, which click would truncate to a line."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from fcnseg.words import closest

            message = f"no command {args[0]!r}; {closest(args[0], self.list_commands(ctx))}"
            raise click.UsageError(message, ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show debug logs, and the traceback of an error.")
@click.version_option(package_name="fcnseg")
def cli(*, debug: bool) -> None:
    """Turn an image classifier into a segmentation model, and serve its masks over gRPC.

    \b
    Convert a classifier to a heatmap model:  fcnseg heatmap ARCH -o model.onnx
    Fine-tune it on labelled masks:           fcnseg train DATA --backbone ARCH -o RUN
    Export the trained model to one file:     fcnseg export RUN -o model.onnx
    Segment a folder of images:               fcnseg segment model.onnx photos/ masks/
    Serve the model over gRPC:                fcnseg serve model.onnx
    Try all of this on this machine:          fcnseg quickstart
    """  # the backspace is click's mark for a paragraph that is not wrapped
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run the command line; exit with 0, 1 (failure), 2 (the user's mistake) or 130 (interrupted)."""
    debug = "--debug" in sys.argv[1:]
    lines = logging.StreamHandler()  # a command may give it a formatter of its own
    lines.setFormatter(_LineFormatter())
    _log.handlers[:] = [lines]
    _log.propagate = False
    try:
        code = cli.main(args=_debug_first(sys.argv[1:]), prog_name="fcnseg", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(error, _usage(error), error.exit_code, debug=debug)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fcnseg: interrupted", err=True)
        code = _INTERRUPTED
    except FcnsegError as error:
        code = _fail(error, str(error), error.exit_code, debug=debug)
    except ModuleNotFoundError as error:
        code = _fail(error, _missing_module(error), 2, debug=debug)
    except BrokenPipeError:
        # The reader of our output has closed the pipe: redirect stdout so that the flush at exit does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        reason = error.strerror or str(error)
        named = f"{shown(Path(str(error.filename)))}: {reason}" if error.filename else reason
        code = _fail(error, named + _REMEDIES.get(error.errno or 0, ""), 1, debug=debug)
    except Exception as error:  # noqa: BLE001  # our own fault: one line for the user, the traceback with --debug
        reason = one_line(f"{type(error).__name__}: {error}")
        code = _fail(error, f"unexpected {reason}; run again with --debug for the traceback", 1, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)


def _debug_first(args: list[str]) -> list[str]:
    """Move --debug to the front, so that it may be anywhere on the line."""
    return ["--debug", *(a for a in args if a != "--debug")] if "--debug" in args else args


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"; see '{context.command_path} --help'" if context else ""
    message = _RANGE.sub(lambda found: f"is not {_NUMBERS[found[1]]}", one_line(error.format_message()))
    return (message if message.endswith("...") else message.rstrip(".")) + hint


def _fail(error: Exception, message: str, code: int, *, debug: bool) -> int:
    _log.error("%s", message, exc_info=error if debug else None)
    return code


def _missing_module(error: ModuleNotFoundError) -> str:
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [name for module in reversed(modules) for name in (module, module.partition(".")[0])]
    extra = next((_EXTRA_OF[name] for name in names if name in _EXTRA_OF), "quickstart")
    return f"this command needs the package {error.name!r}, which is not installed: pip install 'fcnseg[{extra}]'"
