"""A client's access to a server: with TLS, with a token, both, or neither."""

import re
from dataclasses import dataclass, field

from fcnseg.errors import UsageError
from fcnseg.hosts import is_loopback
from fcnseg.tls import ClientTls

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")  # RFC 6750, section 2.1


@dataclass(frozen=True)
class Access:
    """A client's TLS settings and credentials; no message repeats the token.

    Attributes:
        tls: The files by which client and server authenticate each other; None for an unencrypted connection.
        token: The bearer token that identifies the client to the server; None for no token.
        token_in_clear: Whether the token may be sent to another machine without TLS.

    Raises:
        UsageError: The token has characters that tokens cannot have, or is too long.
    """

    tls: ClientTls | None = None
    token: str | None = field(default=None, repr=False)
    token_in_clear: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and _TOKEN.fullmatch(self.token) is None:
            raise UsageError(
                f"the token has {len(self.token)} characters and is none that 'fcnseg token' makes: a token has up to"
                " 1024 letters, digits and ._~+/=-; give it without quotes or spaces"
            )

    @classmethod
    def of(cls, tls: bool | ClientTls, token: str | None, *, token_in_clear: bool) -> "Access":  # noqa: FBT001 - as in Client
        """Return the access for a client's arguments; `tls=True` stands for TLS with the public authorities.

        Raises:
            UsageError: `tls` is neither a bool nor `ClientTls`, such as a path, or the token is not valid.
        """
        if isinstance(tls, bool):
            return cls(ClientTls() if tls else None, token, token_in_clear)
        if not isinstance(tls, ClientTls):
            raise UsageError(f"tls is {tls!r}; give True, or ClientTls with the file of the authorities to trust")
        return cls(tls, token, token_in_clear)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every request that identifies the client."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def stays_here(self) -> bool:
        """Whether there is a token that must not leave this machine."""
        return self.token is not None and self.tls is None and not self.token_in_clear

    def require_private(self, host: str) -> None:
        """Check that nobody can read the token on its way to a host.

        Raises:
            UsageError: The token would be sent to another machine without TLS.
        """
        if self.stays_here and not is_loopback(host):
            raise UsageError(
                f"the token would go to {host} unencrypted, where anyone on the way can read it; use TLS (--tls or --ca"
                " FILE), or allow it with --token-in-clear"
            )
