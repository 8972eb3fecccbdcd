"""Bearer tokens: a file of names, hashes and limits, in which no token itself is written.

    # NAME   SHA-256 of the token           what it may
    camera-1 9f86d081884c7d659a2feaa0c5...  rate=5 concurrent=2
    operator 60303ae22b998861bce3b28f33...  admin

A token of `make_token` has 256 random bits, so that its hash needs neither salt nor slowness.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fcnseg.errors import UsageError
from serving.allowance import Allowance
from serving.reloading import Reloaded

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,7}(\.[0-9]{1,12})?")
_LEAST_RATE, _MOST_RATE = 0.001, 1e6
_RANDOM_BYTES = 32
_PREFIX = "fcnseg_"  # programs that look for secrets in public places know one by it


@dataclass(frozen=True)
class Token:
    """A line of the tokens file; messages quote nothing of it, since it may hold a token by mistake.

    Attributes:
        name: Its holder's name, which may appear in logs.
        sha256: The token's SHA-256 in hexadecimal.
        rate: Most requests per second, 0.001 to 1000000; None for no limit.
        concurrent: Most calls at a time, where a stream counts as one; None for no limit.
        admin: Whether its holder may change what is served.

    Raises:
        UsageError: A value is none of those.
    """

    name: str
    sha256: str = field(repr=False)
    rate: float | None = None
    concurrent: int | None = None
    admin: bool = False

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise UsageError("a token's name is up to 64 letters, digits and ._@-, and begins with a letter or digit")
        if _HASH.fullmatch(self.sha256) is None:
            raise UsageError(
                "a name is followed by its token's SHA-256 as 64 hexadecimal digits; 'fcnseg token' writes it"
            )
        if self.rate is not None and not _LEAST_RATE <= self.rate <= _MOST_RATE:
            raise UsageError(f"rate is {self.rate:g} requests a second; it must be from 0.001 to 1000000")
        if self.concurrent is not None and self.concurrent < 1:
            raise UsageError(f"concurrent is {self.concurrent} calls at a time; it must be at least 1")

    @property
    def line(self) -> str:
        """The token's line in the file."""
        words = [self.name, self.sha256]
        if self.rate is not None:
            words.append(f"rate={self.rate:.9g}")
        if self.concurrent is not None:
            words.append(f"concurrent={self.concurrent}")
        return " ".join([*words, "admin"] if self.admin else words)


class Tokens:
    """The tokens of a file, which is read again when it changes; for one event loop.

    Args:
        path: The file.

    Raises:
        UsageError: It cannot be read, or a line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._file = Reloaded([path], lambda: read_tokens(path))
        self._allowances: dict[Token, Allowance] = {}

    def find(self, secret: str) -> tuple[Token, Allowance] | None:
        """Return a token's line and the allowance of its holder; None if the token is unknown.

        Every line is compared, in constant time, so that the duration reveals nothing.
        """
        digest = _hash(secret)
        found = None
        for token in self._file.get():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return None if found is None else (found, self._allowance(found))

    def _allowance(self, token: Token) -> Allowance:
        """Return the allowance of a token's holder, which a change of other lines does not reset."""
        if token not in self._allowances:
            valid = set(self._file.get())
            self._allowances = {other: left for other, left in self._allowances.items() if other in valid}
            self._allowances[token] = Allowance(token.rate, token.concurrent)
        return self._allowances[token]


def make_token(
    name: str, *, rate: float | None = None, concurrent: int | None = None, admin: bool = False
) -> tuple[str, Token]:
    """Return a new random token, and its line for the file.

    Raises:
        UsageError: The name or a limit is not valid.
    """
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return secret, Token(name, _hash(secret), rate, concurrent, admin)


def append_token(path: Path, token: Token) -> None:
    """Add a token's line to a file, which is created if it does not exist.

    Raises:
        UsageError: The file is not valid, has the name already, or cannot be written.
    """
    present = read_tokens(path) if path.exists() else ()
    if any(other.name == token.name for other in present):
        raise UsageError(
            f"tokens file {path} has a token {token.name!r} already; choose another name or remove its line"
        )
    try:
        with path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            text = file.read()
            file.write("\n" if text and not text.endswith("\n") else "")
            file.write(f"{token.line}\n")
    except OSError as error:
        raise UsageError(f"tokens file {path} cannot be written: {error.strerror}; name another") from error


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read a file of tokens; one without any lets nobody in.

    Raises:
        UsageError: It cannot be read, or a line is wrong; the message names file and line, but quotes nothing of it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # some editors put an invisible byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"tokens file {path} cannot be read: {reason}; 'fcnseg token' makes its lines") from error
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            token = _read_line(words, tokens.values())
        except UsageError as error:
            raise UsageError(f"tokens file {path}, line {number}: {error}") from error
        tokens[token.name] = token
    return tuple(tokens.values())


def _read_line(words: list[str], earlier: Collection[Token]) -> Token:
    rate: float | None = None
    concurrent: int | None = None
    admin = False
    for word in words[2:]:
        key, _, value = word.partition("=")
        if word == "admin":
            admin = True
        elif key == "rate" and _NUMBER.fullmatch(value):
            rate = float(value)
        elif key == "concurrent" and _NUMBER.fullmatch(value) and "." not in value:
            concurrent = int(value)
        else:
            raise UsageError("what follows the hash must be rate=N, concurrent=N or admin")
    token = Token(words[0], words[1] if len(words) > 1 else "", rate, concurrent, admin)
    if any(token.name == other.name or token.sha256 == other.sha256 for other in earlier):
        raise UsageError("an earlier line has the same name or the same token; remove one of them")
    return token


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
