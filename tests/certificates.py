"""Authorities and the certificates that they sign, as files."""

from pathlib import Path

import trustme


class Authority:
    """A certificate authority of its own.

    Args:
        folder: Where its files go.
        name: What they are called.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}-ca.pem"
        self._authority.cert_pem.write_to_path(self.path)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write a certificate for this machine, and its key, over those of the same name; return both paths."""
        issued = self._authority.issue_cert("localhost", "127.0.0.1")
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key
