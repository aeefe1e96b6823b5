"""Client certificates: a PEM text with a certificate, its chain and its private key, for receivers that require one (mTLS).

`check` decides whether a text can be stored. `tls_context` makes the context of a connection from a stored text.
"""

from __future__ import annotations

import ssl
import tempfile
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import serialization

MAX_CERTIFICATE_LENGTH = 32_768
_SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def check(pem: str) -> str:
    """Return the text. Raise ValueError unless it contains a certificate and its unencrypted private key."""
    if len(pem) > MAX_CERTIFICATE_LENGTH:
        raise ValueError(f"must have at most {MAX_CERTIFICATE_LENGTH} characters")
    content = pem.encode("utf-8", "replace")
    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ValueError("must contain a certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    try:
        key = serialization.load_pem_private_key(_private_key(content), None)
    except (TypeError, ValueError):
        raise ValueError("must contain the private key of the certificate in PEM, without a password") from None
    if key.public_key().public_bytes(*_SPKI) != certificates[0].public_key().public_bytes(*_SPKI):
        raise ValueError("the private key does not belong to the first certificate")
    tls_context(pem)
    return pem


def _private_key(content: bytes) -> bytes:
    """Return the part of a PEM text that begins with the private key; the library reads only the first part of a text."""
    for line in (b"PRIVATE KEY-----", b"RSA PRIVATE KEY-----", b"EC PRIVATE KEY-----"):
        at = content.find(b"-----BEGIN " + line)
        if at >= 0:
            return content[at:]
    raise ValueError("there is no private key")


@lru_cache(maxsize=256)
def tls_context(pem: str) -> ssl.SSLContext:
    """Return a context that verifies the receiver and presents the certificate. Raise ValueError if the text is unusable."""
    context = ssl.create_default_context()
    # OpenSSL reads a certificate chain only from a file. Only this user can read it, and it is deleted at once.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        try:
            context.load_cert_chain(file.name, password=lambda: b"")
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"OpenSSL does not accept the certificate: {getattr(error, 'reason', None) or 'unreadable'}") from None
    return context
