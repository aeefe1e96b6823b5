"""The URL of an invitation to the portal, and the file with the URL of the first invitation.

The command `serve` imports this module at each start. The module imports no other module of the portal, so that a process that
never serves the portal does not load the libraries of the portal.
"""

# Tested by tests/portal/test_welcome.py

from __future__ import annotations

from pathlib import Path

PATH = "/portal/welcome"
INVITATION_FILE = "portal-invitation"


def link(origin: str, token: str) -> str:
    """Return the invitation URL: the URL of the welcome page with the token."""
    return f"{origin}{PATH}#{token}"


def invitation_file(data_dir: Path) -> Path:
    """Return the path of the file that contains the URL of the first invitation. The process also prints this URL, but in a
    container, it is possible that nobody reads the output. The mode of the file is 0600."""
    return data_dir / INVITATION_FILE
