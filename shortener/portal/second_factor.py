"""The second factor of operators: time-based one-time passwords (RFC 6238) and recovery codes.

A one-time password (code) belongs to a time step of 30 seconds. It is valid in this step, in the step before and in the step
after. It can be used only once. The secret is stored encrypted with the master secret. Recovery codes have 50 random bits and are
stored as hashes. A recovery code can be used once, in place of a code from the authenticator app.
"""
# Tested by tests/portal/test_signin.py

from __future__ import annotations

import hmac
import importlib
import secrets
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from shortener.accounts.directory import hash_credential
from shortener.secret import Secret
from shortener.storage.schema import operator_recovery_codes, operators

STEP_SECONDS = 30
RECOVERY_CODES = 10
ISSUER = "SMS shortener"
# The characters of recovery codes. They do not include 0, o, 1, i and l, because these look alike.
_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"
_CODE_CHARACTERS = 10

_t = operator_recovery_codes.c


def load_libraries(master: Secret) -> None:
    """Import the libraries that check codes. Call this before a transaction in which a code is checked, so that the import does
    not prolong the transaction."""
    importlib.import_module("pyotp")
    master.load()


def new_totp_secret() -> str:
    """Return a random secret in base 32 for time-based one-time passwords."""
    import pyotp  # pyotp is imported here, because only processes that check codes need it.

    return pyotp.random_base32()


def provisioning_uri(secret: str, name: str) -> str:
    """Return the otpauth:// URL that authenticator apps read from a QR code."""
    import pyotp

    return pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=ISSUER)


def matching_step(secret: str, code: str, now: datetime) -> int | None:
    """Return the number of the time step to which a code belongs: the current, the previous or the next step. Return None if the
    code belongs to none of them."""
    import pyotp

    code = code.replace(" ", "")
    totp = pyotp.TOTP(secret)
    current = int(now.timestamp()) // STEP_SECONDS
    for step in (current, current - 1, current + 1):
        if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode()):
            return step
    return None


def use_code(connection: Connection, operator_id: int, code: str, now: datetime, master: Secret) -> str | None:
    """Check a code from the app or a recovery code. If it is valid, make it unusable, and return its kind: "totp" or "recovery".
    Return None if it is not valid."""
    row = connection.execute(select(operators.c.totp_secret).where(operators.c.id == operator_id)).first()
    if row is None or row.totp_secret is None:
        return None
    step = matching_step(master.decrypt(row.totp_secret), code, now)
    if step is not None:
        unused = or_(operators.c.totp_step.is_(None), operators.c.totp_step < step)
        used = update(operators).where(operators.c.id == operator_id, unused).values(totp_step=step)
        return "totp" if connection.execute(used).rowcount else None
    hashed = _hash_recovery_code(code)
    of_operator = _t.operator_id == operator_id
    used = update(operator_recovery_codes).where(of_operator, _t.hash == hashed, _t.used_at.is_(None)).values(used_at=now)
    return "recovery" if connection.execute(used).rowcount else None


def enable(connection: Connection, operator_id: int, secret: str, step: int, master: Secret) -> list[str]:
    """Turn the second factor on with a new secret. `step` is the time step of the code with which the operator has confirmed the
    secret; this code cannot be used again. Return new recovery codes, which are shown once."""
    values = {"totp_secret": master.encrypt(secret), "totp_step": step}
    connection.execute(update(operators).where(operators.c.id == operator_id).values(values))
    return new_recovery_codes(connection, operator_id)


def disable_factor(connection: Connection, operator_id: int) -> None:
    """Remove the second factor and its recovery codes."""
    values = {"totp_secret": None, "totp_step": None}
    connection.execute(update(operators).where(operators.c.id == operator_id).values(values))
    connection.execute(delete(operator_recovery_codes).where(_t.operator_id == operator_id))


def new_recovery_codes(connection: Connection, operator_id: int) -> list[str]:
    """Replace the recovery codes of an operator and return the new codes."""
    codes = ["".join(secrets.choice(_ALPHABET) for _ in range(_CODE_CHARACTERS)) for _ in range(RECOVERY_CODES)]
    connection.execute(delete(operator_recovery_codes).where(_t.operator_id == operator_id))
    connection.execute(
        insert(operator_recovery_codes), [{"operator_id": operator_id, "hash": _hash_recovery_code(code)} for code in codes]
    )
    return [f"{code[:5]}-{code[5:]}" for code in codes]


def count_recovery_codes(connection: Connection, operator_id: int) -> int:
    """Return the number of recovery codes that the operator has not used yet."""
    statement = select(func.count()).where(_t.operator_id == operator_id, _t.used_at.is_(None))
    return connection.execute(statement).scalar_one()


def _hash_recovery_code(code: str) -> str:
    return hash_credential("recovery:" + code.replace("-", "").replace(" ", "").lower())
