"""The security settings of a server: encryption, tokens, and who may change what is served."""

from dataclasses import dataclass

import grpc

from fcnseg.errors import UsageError
from fcnseg.hosts import is_loopback
from serving.guard import Guard
from serving.tls import ServerTls
from serving.tokens import Tokens


@dataclass(frozen=True)
class Security:
    """The security settings of a server.

    By default everything is open, except changing what is served if the server listens to a network.

    Attributes:
        tls: How connections are encrypted; None for no encryption.
        tokens: The known tokens; None lets in whoever reaches the port.
        admin_closed_by: The option by which nobody may load and unload models; if None and there are tokens, holders of
            admin tokens may.
        open_admin: Whether everyone may load and unload models, from a network too.
        reflection: Whether the server describes its services.

    Raises:
        UsageError: `open_admin` contradicts another.
    """

    tls: ServerTls | None = None
    tokens: Tokens | None = None
    admin_closed_by: str | None = None
    open_admin: bool = False
    reflection: bool = True

    def __post_init__(self) -> None:
        if self.open_admin and self.admin_closed_by:
            raise UsageError(f"--open-admin and {self.admin_closed_by} contradict each other; give one of them")
        if self.open_admin and self.tokens is not None:
            raise UsageError(
                "--open-admin has no effect with --tokens; add the word admin to the lines of the tokens that may"
            )

    def guard(self, host: str) -> Guard:
        """Return the guard of every call to a server that listens at a host.

        Without tokens callers cannot be told apart: what is served may then be changed only if the server listens on
        this machine alone.
        """
        closed = None
        if self.admin_closed_by:
            closed = f"the server was started with {self.admin_closed_by}; start it without"
        elif self.tokens is None and not self.open_admin and not is_loopback(host):
            closed = "the server listens to a network and knows no tokens; start it with --tokens FILE or --open-admin"
        return Guard(self.tokens, closed)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Have a server listen at an address, and return the port."""
        if self.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.tls.credentials())

    def exposure(self, host: str) -> str | None:
        """Return one line that says what anyone on the network could do, and which flags prevent it; None if nothing.

        Args:
            host: Where the server listens.
        """
        if is_loopback(host):
            return None
        open_ends = []
        if self.tls is None:
            open_ends.append("without TLS (--tls-cert, --tls-key): what is sent can be read and changed on the way")
        if self.tokens is None and (self.tls is None or not self.tls.asks_clients):
            open_ends.append("without tokens (--tokens): whoever reaches the port is answered")
        return f"listening on {host} {', and '.join(open_ends)}" if open_ends else None
