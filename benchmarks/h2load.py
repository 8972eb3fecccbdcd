"""The load generator of nghttp2 (Debian: apt install nghttp2-client), over gRPC and over HTTP/1.1."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What is sent, and where.

    Attributes:
        path: The URL's path; of a method for gRPC.
        body: The message.
        grpc: Whether it goes as gRPC over HTTP/2, or as bytes over HTTP/1.1.
    """

    path: str
    body: bytes
    grpc: bool = True


def require_h2load() -> None:
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is not installed; Debian has it: apt install nghttp2-client")


def h2load(address: str, request: Request, clients: int, requests: int, least: int) -> float:
    """Send a request so many times, from so many clients that each wait for the answer, and return requests a second.

    h2load does not see gRPC's errors: fails where an answer was not whole, so where fewer than `least` bytes came for
    a request.
    """
    command = ["h2load", "-c", str(clients), "-n", str(requests), "-m", "1"]
    body = request.body
    if request.grpc:
        body = b"\0" + len(body).to_bytes(4, "big") + body
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    else:
        command += ["--h1", "-H", "content-type: application/octet-stream"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "body"
        file.write_bytes(body)
        command += ["-d", str(file), f"http://{address}{request.path}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate, received = re.search(r", ([\d.]+) req/s", text), re.search(r"\((\d+)\) data", text)
    whole = received is not None and int(received[1]) >= requests * least
    if rate is None or not whole or f"status codes: {requests} 2xx" not in text:
        raise SystemExit(f"h2load did not receive {requests} whole answers:\n{text}")
    return float(rate[1])
