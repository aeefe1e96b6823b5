"""The data class that the checks of `shortener doctor` return."""
# Tested by tests/cli/test_doctor.py

from __future__ import annotations

from typing import Literal

from shortener.model import record


@record
class Finding:
    """The result of one check. `remedy` describes what the operator must do; it is empty for the level `ok`."""

    check: str
    level: Literal["ok", "warning", "error"]
    text: str
    remedy: str = ""
