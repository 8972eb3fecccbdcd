"""Format names for messages: those most similar to a word, and the first of many."""

import difflib
from collections.abc import Collection, Sequence
from itertools import islice


def closest(word: str, choices: Sequence[str]) -> str:
    """Say which choices are most similar to a word, or list all choices if they are few."""
    folded = {c.casefold(): c for c in choices}
    near = [folded[m] for m in difflib.get_close_matches(word.casefold(), folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else f"there are {first_of(choices, 10)}"


def first_of(names: Collection[object], most: int) -> str:
    """List at most `most` names; dots show that there are more."""
    return ", ".join(map(str, islice(names, most))) + (", ..." if len(names) > most else "")
