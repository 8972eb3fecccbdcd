"""What the documents say is there: the places that they link to, and the commands and options that they name."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fcnseg.cli import cli

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("docs", "deploy", "benchmarks", "results", "quickstart", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
IN_LINE = re.compile(r"`([^`]+)`")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    text = FENCE.sub("", path.read_text())
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"(?m)^#+ (.+)$", text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind each `fcnseg` in a block or within a line, without what is the shell's."""
    text = FENCE.sub("", text).replace("\\\n", " ")
    blocks = re.findall(r"^    (?:\$ )?(.+)$", text, re.MULTILINE)
    for line in (*blocks, *IN_LINE.findall(text)):
        for part in re.split(r"&&|;|\|\s|\s#\s|\s2?>\s", line):
            if re.match(r"fcnseg [a-z]", part.strip()):
                yield shlex.split(part)[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"https?://|mailto:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_commands_and_options_that_are_named_exist(document: Path) -> None:
    for words in commands(document.read_text()):
        command, rest = called(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
        assert set(options) <= known | {"--help"}, words


def called(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, the first of several as in `load|unload`, and the words behind."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        names = rest.pop(0).split("|")
        first, *others = [command.get_command(click.Context(command), name) for name in names]
        assert first is not None, words
        assert None not in others, words
        command = first
    return command, rest


def test_a_command_or_an_option_that_is_not_there_is_seen() -> None:
    text = "    $ fcnseg models load cat \\\n      --server here > x\n\nas `fcnseg serve m.onnx --port 1` does"
    assert list(commands(text)) == [["models", "load", "cat", "--server", "here"], ["serve", "m.onnx", "--port", "1"]]
    with pytest.raises(AssertionError):
        called(["models", "load|lode", "cat"])
