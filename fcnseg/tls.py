"""A client's certificates and keys in PEM files; they are checked here, because gRPC would only log errors."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from fcnseg.errors import UsageError


@dataclass(frozen=True)
class KeyPair:
    """A private key and its certificate chain.

    Attributes:
        key: The private key, as PEM.
        certificates: The certificate, then those of the authorities between it and the root, as PEM.
    """

    key: bytes
    certificates: bytes


@dataclass(frozen=True)
class ClientTls:
    """Files for TLS: the authorities that a client trusts, and its own certificate.

    Attributes:
        authorities: PEM file of the trusted authorities' certificates; None for the public ones bundled with gRPC.
        certificate: PEM file of the client's own certificate, for servers that require one (mutual TLS).
        key: PEM file of the certificate's private key.

    Raises:
        UsageError: Only one of certificate and key is given.
    """

    authorities: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise UsageError(
                f"client {given} {self.certificate or self.key} was given without its {missing}; give both files"
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            UsageError: A file cannot be read or has no certificate or key, or certificate and key do not match.
        """
        authorities = None if self.authorities is None else read_certificates(Path(self.authorities))
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(authorities)
        pair = read_key_pair(Path(self.certificate), Path(self.key))
        return grpc.ssl_channel_credentials(authorities, pair.key, pair.certificates)


def read_certificates(path: Path) -> bytes:
    """Read a file of certificates, as PEM.

    Raises:
        UsageError: The file cannot be read, or has no certificate.
    """
    data = _read(path, "certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"certificate file {path} holds no certificate that can be read; give a PEM file, which begins with"
            " -----BEGIN CERTIFICATE-----"
        ) from error
    return data


def read_key_pair(certificate: Path, key: Path) -> KeyPair:
    """Read the files of a certificate and of its private key.

    Raises:
        UsageError: A file cannot be read, or certificate and key do not match.
    """
    certificates = read_certificates(certificate)
    secret = _read(key, "key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: _refuse_password(key))
    except OSError as error:  # the base class of ssl.SSLError
        known = getattr(error, "reason", None)
        if known == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"key {key} does not belong to certificate {certificate}; give the key that it was made with"
            ) from error
        reason = (known or "no private key in PEM").replace("_", " ")
        raise UsageError(
            f"key {key} cannot be used with certificate {certificate} ({reason}); give its private key as a PEM file"
        ) from error
    return KeyPair(secret, certificates)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} file {path} cannot be read: {error.strerror}; give one that can be") from error


def _refuse_password(key: Path) -> str:
    raise UsageError(f"key {key} is encrypted, which gRPC does not read; decrypt it with openssl pkey -in {key}")
