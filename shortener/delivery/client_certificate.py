"""This module checks and loads the client certificates of trackers, for receivers that require one (mTLS).

A client certificate is stored as a PEM text that contains the certificate, its chain and its private key. `check` raises an error
if the text is not valid, so that the caller does not store it. `tls_context` creates a TLS context from a stored text.
"""

from __future__ import annotations

import ssl
import tempfile
from functools import lru_cache

MAX_CERTIFICATE_LENGTH = 32_768


def check(pem: str) -> str:
    """Return the PEM text unchanged. Raise ValueError if the text does not contain a certificate and its unencrypted private
    key."""
    if len(pem) > MAX_CERTIFICATE_LENGTH:
        raise ValueError(f"must have at most {MAX_CERTIFICATE_LENGTH} characters")
    from cryptography import x509  # imported here, because a process without client certificates does not need it
    from cryptography.hazmat.primitives import serialization

    content = pem.encode("utf-8", "replace")
    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ValueError("must contain a certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    try:
        key = serialization.load_pem_private_key(_private_key(content), None)
    except (TypeError, ValueError):
        raise ValueError("must contain the private key of the certificate in PEM, without a password") from None
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificates[0].public_key().public_bytes(*spki):
        raise ValueError("the private key does not belong to the first certificate")
    tls_context(pem)
    return pem


def _private_key(content: bytes) -> bytes:
    """Return the part of a PEM text that begins with the private key. `cryptography` reads only the first block of a text, which
    may be the certificate."""
    for line in (b"PRIVATE KEY-----", b"RSA PRIVATE KEY-----", b"EC PRIVATE KEY-----"):
        at = content.find(b"-----BEGIN " + line)
        if at >= 0:
            return content[at:]
    raise ValueError("there is no private key")


@lru_cache(maxsize=256)
def tls_context(pem: str) -> ssl.SSLContext:
    """Return a TLS context that verifies the receiver, and that sends the client certificate in the PEM text to the receiver.

    Raise ValueError if OpenSSL does not accept the text."""
    context = ssl.create_default_context()
    # `load_cert_chain` of Python reads a certificate chain only from a file. Only the user of this process can read the temporary
    # file, which is deleted as soon as the certificate is loaded.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        try:
            context.load_cert_chain(file.name, password=lambda: b"")
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"OpenSSL does not accept the certificate: {getattr(error, 'reason', None) or 'unreadable'}") from None
    return context
