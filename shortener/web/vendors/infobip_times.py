"""This module writes times in Infobip's format, for example 2026-11-20T12:00:00.000+0000."""
# Tested by tests/web/vendors/test_infobip_logs.py

from __future__ import annotations

from datetime import UTC, datetime


def serialize_infobip_time(at: datetime) -> str:
    """Return a time as text in Infobip's format, in UTC with milliseconds."""
    return f"{at.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}+0000"
