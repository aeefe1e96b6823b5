"""This module prevents a form from overwriting a change that was made after the form was shown.

A form that changes stored values has a hidden field `version` with a hash of each value that it showed (`version_of`). The
transaction that saves the form locks the stored values and calls `check_version`. If a stored value has changed since the form
was shown, nothing is saved. `FormChanged` then contains the values for a new form. In the new form, a field that the operator has
not changed shows the new stored value. Every other field shows what the operator entered. Each field whose stored value has
changed is marked. When the operator sends the new form, it is saved.

Stored values that the form does not show are not compared. A form without a version is not checked; pages of the previous release
contain such forms.
"""
# Tested by tests/portal/test_form_versions.py

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from shortener.errors import ApiError, Detail, ErrorCode
from shortener.portal.page import Visit

FIELD = "version"
MAX_SHOWN_CHARACTERS = 300  # The text beside a field shows at most this number of characters of the new stored value.
#: The values of a form by field name. A value is a text, a list of selected values, or whether a box is checked.
FormValues = Mapping[str, str | bool | Sequence[str]]

_DESCRIPTION = (
    "Somebody changed values of this form after you opened it, so nothing was saved. The changed fields are marked. Check them, "
    "and save again."
)


class FormChanged(ApiError):
    """The error for a form that shows values which somebody has changed after the form was shown.

    `values`, `lists` and `version` describe the new form: its entries, in the format of `Visit.form` and `Visit.form_lists`, and
    its version."""

    def __init__(self, details: Sequence[Detail], lists: Mapping[str, list[str]], version: str) -> None:
        super().__init__(ErrorCode.CONFLICT, _DESCRIPTION, details)
        self.lists = lists
        self.values = {name: entries[-1] if entries else "" for name, entries in lists.items()}
        self.version = version


def version_of(values: FormValues) -> str:
    """Return the version of a form that shows these values: a hash of each value."""
    return " ".join(f"{name}={_hash(_entries(value))}" for name, value in values.items())


def check_version(visit: Visit, stored: FormValues) -> None:
    """Raise FormChanged if saving the form of the visit would overwrite a stored value that the form did not show.

    `stored` are the values that are stored now. The caller must have locked the rows that contain them."""
    shown = dict(part.split("=", 1) for part in visit.form.get(FIELD, "").split() if "=" in part)
    merged, details = dict(visit.form_lists), []
    for name, value in stored.items():
        present, entered = _entries(value), _entered(visit, name, value)
        if name not in shown or shown[name] == _hash(present) or present == entered:
            continue
        if shown[name] == _hash(entered):
            merged[name] = present
            details.append(Detail(name, "was changed after you opened this form. The field now shows the new value"))
        else:
            # This is never a checkbox, which has only two values. If somebody else and the operator have both changed the value,
            # the box now equals the stored value.
            text = ", ".join(present) or "empty"
            text = text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
            reason = f"was changed after you opened this form, to: {text}. If you save again, your entry replaces this value"
            details.append(Detail(name, reason))
    if details:
        raise FormChanged(details, merged, version_of(stored))


def _entries(value: str | bool | Sequence[str]) -> list[str]:
    """Return the texts that a browser sends for a form field with this value. For an empty field, and for a box that is not
    checked, the list is empty."""
    if isinstance(value, bool):
        return ["on"] if value else []
    if isinstance(value, str):
        # A browser sends each line break of a text area as \r\n. The spaces at the start and end of an entry are removed before
        # it is stored, so they are ignored here.
        text = value.replace("\r\n", "\n").strip()
        return [text] if text else []
    return sorted(value)


def _entered(visit: Visit, name: str, stored: str | bool | Sequence[str]) -> list[str]:
    """Return the texts that the form contains for a field. The result of `_entries` has the same format."""
    if isinstance(stored, bool):
        return _entries(bool(visit.form.get(name)))
    return _entries(visit.form.get(name, "") if isinstance(stored, str) else visit.form_lists.get(name, ()))


def _hash(entries: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(entries).encode("utf-8", "replace"), digest_size=6).hexdigest()
