"""How a client is let in by a server: over TLS, with a token, or neither."""

import re
from dataclasses import dataclass, field

from fcnseg.errors import UsageError
from fcnseg.hosts import is_loopback
from fcnseg.tls import ClientTls

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,1024}")  # RFC 6750, section 2.1


@dataclass(frozen=True)
class Access:
    """What a client brings to a server; no message repeats the token.

    Attributes:
        tls: The files by which both know each other; None for a connection in the clear.
        token: What the server knows the client by; None for nothing.
        token_in_clear: Whether the token may go to another machine without TLS.

    Raises:
        UsageError: The token has other characters than a token has.
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
        """Return what a client's arguments mean; True stands for TLS with the public authorities.

        Raises:
            UsageError: `tls` is neither, such as a path, or the token is none.
        """
        if isinstance(tls, bool):
            return cls(ClientTls() if tls else None, token, token_in_clear)
        if not isinstance(tls, ClientTls):
            raise UsageError(f"tls is {tls!r}; give True, or ClientTls with the file of the authorities to trust")
        return cls(tls, token, token_in_clear)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every request says of its client."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def stays_here(self) -> bool:
        """Whether there is a token that must not leave this machine."""
        return self.token is not None and self.tls is None and not self.token_in_clear

    def require_private(self, host: str) -> None:
        """Check that the token reaches a host unread.

        Raises:
            UsageError: It would go to another machine without TLS.
        """
        if self.stays_here and not is_loopback(host):
            raise UsageError(
                f"the token would go to {host} unencrypted, where anyone on the way can read it; use TLS (--tls or --ca"
                " FILE), or allow it with --token-in-clear"
            )
