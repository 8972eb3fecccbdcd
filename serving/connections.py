"""How long connections live and what they may carry: gRPC's settings, with defaults for a server among strangers."""

import math
from dataclasses import dataclass, fields

from fcnseg.errors import UsageError

_LONGEST_S = 24 * 86400.0  # what fits into gRPC's milliseconds
_MOST = 2**31 - 2  # what fits into gRPC's numbers, and is not none at all
_COUNTS = {"max_streams", "max_connections"}
_MOST_PENDING = 10_000
_UNCOMPRESSED = 1  # of gRPC's ways to compress messages the set that holds `identity` alone
SHORTEST_PING_INTERVAL_MS = 5000
"""What a client may not undercut with pings of its own; gRPC's default of 5 minutes ends connections of honest ones."""
_FLAGS = {
    "keepalive_s": "--keepalive",
    "max_age_s": "--max-connection-age",
    "max_age_grace_s": "--max-connection-age-grace",
    "max_streams": "--max-streams",
    "max_connections": "--max-connections",
}


@dataclass(frozen=True)
class ConnectionConfig:
    """How connections are kept.

    Attributes:
        keepalive_s: Seconds of silence after which a client is pinged: one that is gone holds nothing for long.
        keepalive_timeout_s: Seconds that its answer may take before the connection is closed, and the first word of one
            that has just connected.
        max_age_s: Seconds after which a connection is ended as soon as its requests are answered, give or take a tenth;
            a client connects anew, and a balancer of connections places it anew. 0 for no end.
        max_age_grace_s: Seconds that requests and streams may still take then. 0 for no end.
        max_streams: Requests that a connection may carry at a time; more wait at their sender.
        max_connections: Connections that there may be at an address; those beyond are closed at once. 0 for no limit.

    Raises:
        UsageError: One of them has no valid value; the message names the flag of `fcnseg serve`.
    """

    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    max_age_s: float = 0.0
    max_age_grace_s: float = 0.0
    max_streams: int = 256
    max_connections: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in {"keepalive_s", "keepalive_timeout_s", "max_streams"} else 0
            most = _MOST if field.name in _COUNTS else _LONGEST_S
            if not least <= value <= most:
                raise UsageError(
                    f"{_FLAGS.get(field.name, field.name)} is {value:g}; it must be from {least} to {most:.0f}"
                )
        if self.max_age_grace_s and not self.max_age_s:
            raise UsageError(
                f"--max-connection-age-grace is {self.max_age_grace_s:g} and connections may be of any age; give"
                " --max-connection-age too, or leave it out"
            )

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        """The settings as gRPC names them."""
        options = [
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_s)),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            # The keepalive timeout alone closes nothing in gRPC 1.85: this one, of a minute by default, does.
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive_timeout_s)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.keepalive_timeout_s)),
            ("grpc.http2.max_pings_without_data", 0),  # else silence is pinged twice and then never again
            ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_INTERVAL_MS),
            ("grpc.max_concurrent_streams", self.max_streams),
            # Else it refuses calls (UNAVAILABLE) of a client that keeps to the limit, by streams that are just ending.
            ("grpc.http.overload_protection", 0),
            # Calls that have come and are not taken yet: beyond these, 1000 and 3000 by default, some are cancelled.
            ("grpc.server.max_pending_requests", _MOST_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
            # A compressed message takes a thousand times its bytes once it is here, of strangers to health too.
            ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
        ]
        if self.max_connections:
            options.append(("grpc.max_allowed_incoming_connections", self.max_connections))
        if self.max_age_s:
            options.append(("grpc.max_connection_age_ms", _milliseconds(self.max_age_s)))
            if self.max_age_grace_s:
                options.append(("grpc.max_connection_age_grace_ms", _milliseconds(self.max_age_grace_s)))
        return options


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)
