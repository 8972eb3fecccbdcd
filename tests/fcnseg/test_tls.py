from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fcnseg.errors import UsageError
from fcnseg.tls import ClientTls, read_certificates, read_key_pair
from tests.certificates import Authority


def test_files_are_read_as_they_are(authority: Authority) -> None:
    certificate, key = authority.issue("server")
    pair = read_key_pair(certificate, key)
    assert (pair.certificates, pair.key) == (certificate.read_bytes(), key.read_bytes())
    assert read_certificates(authority.path) == authority.path.read_bytes()


def test_a_file_that_is_not_there_is_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("server")
    nowhere = tmp_path / "nowhere.pem"
    with pytest.raises(UsageError, match=f"certificate file {nowhere} cannot be read: No such file"):
        read_key_pair(nowhere, key)
    with pytest.raises(UsageError, match=f"key file {nowhere} cannot be read: No such file"):
        read_key_pair(certificate, nowhere)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff\x00"])
def test_a_file_without_a_certificate_or_a_key_is_named(authority: Authority, content: bytes) -> None:
    certificate, key = authority.issue("server")
    key.write_bytes(content)
    with pytest.raises(UsageError, match=f"key {key} cannot be used with certificate .*; give its private key"):
        read_key_pair(certificate, key)
    certificate.write_bytes(content)
    with pytest.raises(UsageError, match=f"{certificate} holds no certificate .*-----BEGIN CERTIFICATE-----"):
        read_certificates(certificate)


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    certificate, _ = authority.issue("server")
    _, other = authority.issue("other")
    with pytest.raises(UsageError, match=f"key {other} does not belong to certificate {certificate}"):
        read_key_pair(certificate, other)


def test_an_encrypted_key_is_refused_with_the_way_to_decrypt_it(authority: Authority) -> None:
    certificate, key = authority.issue("server")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(UsageError, match=f"key {key} is encrypted, .*openssl pkey"):
        read_key_pair(certificate, key)


def test_a_client_certificate_comes_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"client certificate a\.pem was given without its key"):
        ClientTls(certificate=Path("a.pem"))
    with pytest.raises(UsageError, match=r"client key a\.key was given without its certificate"):
        ClientTls(key=Path("a.key"))
