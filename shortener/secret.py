"""The installation's one secret, and the keys derived from it.

Made at first start, kept in `DATA_DIR/secret` with mode 0600, or given as SECRET (needed when several machines share a
database). Everything keyed comes from it by purpose: the salt of codes, the check in click ids, the encryption of trackers'
secrets, the portal's sessions. Losing it makes encrypted values unreadable; links in handsets go on working.

Raises `SecretError` when the kept secret is empty, weak or readable by others' write.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken


class SecretError(Exception):
    """The secret cannot be used or kept."""


class Secret:
    def __init__(self, value: str) -> None:
        if len(value) < 32 or len(set(value)) < 10:
            raise SecretError("the secret is empty or too weak: 32 random characters or more are needed")
        self._value = value.encode()
        self._fernet = Fernet(base64.urlsafe_b64encode(self.key("encryption")))

    def key(self, purpose: str) -> bytes:
        """32 bytes that only this installation has, another for each purpose."""
        return hmac.digest(self._value, purpose.encode(), hashlib.sha256)

    @property
    def code_salt(self) -> str:
        return self.key("code salt").hex()

    @property
    def fingerprint(self) -> str:
        """What the database remembers, so that a node with another secret refuses to start."""
        return self.key("fingerprint").hex()[:16]

    def encrypt(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, token: str) -> str:
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except InvalidToken:
            raise SecretError("a stored value was encrypted with another SECRET") from None


def open_secret(given: str, data_dir: Path) -> Secret:
    """The secret of this installation: the given one, the kept one, or a new one that is kept from now on."""
    if given:
        return Secret(given)
    place = data_dir / "secret"
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return Secret(place.read_text().strip())
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return Secret(place.read_text().strip())
    except OSError as error:
        raise SecretError(f"cannot keep the secret in {place}: {error.strerror}") from None
    except SecretError as error:
        raise SecretError(f"{place}: {error}") from None
