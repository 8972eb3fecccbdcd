"""The server's certificate: renewed without a restart."""

from pathlib import Path

import grpc

from fcnseg.errors import UsageError
from fcnseg.tls import read_certificates, read_key_pair
from serving.reloading import Reloaded


class ServerTls:
    """The server's certificate, its key, and the client authorities; a new connection uses the files' current content.

    Args:
        certificate: PEM file of the server's certificate, followed by its intermediate certificates.
        key: PEM file of its private key.
        client_authorities: PEM file of the authorities one of which must have signed a client's certificate; None
            asks clients for none.

    Raises:
        UsageError: A file cannot be read, or they do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_authorities: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authorities = client_authorities
        paths = [path for path in (certificate, key, client_authorities) if path is not None]
        self._configuration = Reloaded(paths, self._read)

    @property
    def asks_clients(self) -> bool:
        """Whether clients need a certificate."""
        return self._client_authorities is not None

    def credentials(self) -> grpc.ServerCredentials:
        """Return what gRPC needs to listen."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration.get(), self._configuration.get, require_client_authentication=self.asks_clients
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        pair = read_key_pair(self._certificate, self._key)
        authorities = None if self._client_authorities is None else read_certificates(self._client_authorities)
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificates)], authorities)


def open_tls(certificate: Path | None, key: Path | None, client_authorities: Path | None) -> ServerTls | None:
    """Return how connections are encrypted; None if no file is given.

    Raises:
        UsageError: One of the files is not given, cannot be read, or does not belong to the others.
    """
    if certificate is not None and key is not None:
        return ServerTls(certificate, key, client_authorities)
    if certificate is None and key is None and client_authorities is None:
        return None
    missing = " and ".join(
        flag for flag, path in (("--tls-cert FILE", certificate), ("--tls-key FILE", key)) if path is None
    )
    raise UsageError(f"TLS needs a certificate and its key; give {missing} too")
