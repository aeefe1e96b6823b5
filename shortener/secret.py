"""This module reads the master secret of an installation, and derives keys from it.

The first start creates the secret in the file `DATA_DIR/secret` with mode 0600. An operator can set it with the setting SECRET
instead. The setting is necessary if several machines share a database. A separate key is derived from the secret for each
purpose: the salt of link codes, the check value in click ids, and the encryption of tracker secrets.

The database stores the fingerprint of its secret, and a process with another secret does not start. If the secret is lost,
`shortener secret adopt` replaces it: short links still work, but encrypted values are lost.

`SecretError` is raised if the secret file is empty, weak, or writable by other users.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from shortener.settings import MIN_SECRET_LENGTH, is_weak_secret
from shortener.signatures import SIGNING_PREFIX

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class SecretError(Exception):
    """Raised if the secret is not valid, or cannot be read or stored. The text of the error contains the reason."""


#: The text of the error that is raised if a database exists but no secret file.
_MISSING = (
    "the file does not exist, but the database belongs to an installation that has a secret. Restore the file from a backup, or "
    "set SHORTENER_SECRET to its content. If the secret is lost, run `shortener secret adopt`: links continue to work"
)


class Secret:
    """A master secret. Each purpose has its own derived key."""

    def __init__(self, value: str) -> None:
        """Raise SecretError if the secret `value` is too weak."""
        if is_weak_secret(value):
            raise SecretError(f"the secret is empty or too weak: it must be at least {MIN_SECRET_LENGTH} random characters")
        self._value = value.encode()

    @cached_property
    def _fernet(self) -> Fernet:
        # The library `cryptography` is imported here, because it takes 6 MB. A process without trackers and gateways does not
        # need it.
        from cryptography.fernet import Fernet

        return Fernet(base64.urlsafe_b64encode(self.key("encryption")))

    def key(self, purpose: str) -> bytes:
        """Return the 32-byte key of this installation for one purpose."""
        return hmac.digest(self._value, purpose.encode(), hashlib.sha256)

    @property
    def text(self) -> str:
        """The plain text of the secret, as the secret file contains it."""
        return self._value.decode()

    @property
    def code_salt(self) -> str:
        """The salt from which link codes are derived."""
        return self.key("code salt").hex()

    @property
    def fingerprint(self) -> str:
        """A text that identifies this secret. The database stores it, so that a process with another secret does not start."""
        return self.key("fingerprint").hex()[:16]

    def load(self) -> None:
        """Import the library that `encrypt` and `decrypt` use. Call `load` before a transaction that encrypts or decrypts."""
        _ = self._fernet

    def encrypt(self, text: str) -> str:
        """Return the text, encrypted with a key that is derived from this secret."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, token: str) -> str:
        """Return the text that `encrypt` encrypted. Raise SecretError if another secret encrypted it."""
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(token.encode()).decode()
        except InvalidToken:
            raise SecretError("a stored value was encrypted with another SECRET") from None

    def is_encrypted(self, token: str | None, text: str | None) -> bool:
        """Return whether `token` is the text in encrypted form. Return False if `token` or `text` is None."""
        try:
            return token is not None and self.decrypt(token) == text
        except SecretError:
            return False


def new_signing_secret() -> str:
    """Return a random secret for signatures: `whsec_` and 32 bytes in base64."""
    return SIGNING_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def open_secret(setting: SecretStr, data_dir: Path, *, create: bool = False) -> Secret:
    """Return the secret of this installation: the setting SECRET, or else the content of the secret file.

    If there is neither a setting nor a file: with `create`, create the file with a new secret; otherwise raise SecretError. A new
    secret does not fit a database that already exists, so `create` must be false for such a database. SecretError is also raised
    if the secret is weak, if the file cannot be read, or if other users can write to the file."""
    if text := setting.get_secret_value():
        return Secret(text)
    path = secret_file(data_dir)
    try:
        if not path.exists():
            if not create:
                raise SecretError(_MISSING)
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_secret(path, secrets.token_urlsafe(48))
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SecretError("other users can change the secret; run chmod 600 on the file")
        return Secret(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"cannot read or store the secret in {path}: {getattr(error, 'strerror', None) or error}") from None
    except SecretError as error:
        raise SecretError(f"{path}: {error}") from None


def secret_file(data_dir: Path) -> Path:
    """Return the path of the secret file of an installation."""
    return data_dir / "secret"


def write_secret(path: Path, value: str) -> None:
    """Create the secret file atomically. If another process has created it at the same time, keep the file of that process."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # `os.link` never replaces an existing file. A rename would replace it.
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
