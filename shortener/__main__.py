"""Run the `shortener` command, also with `python -m shortener`.

An installation of the client alone has no parts for the command. It prints which installation has them.
"""
# Tested by tests/acceptance/test_installation.py

from __future__ import annotations

import sys
from importlib.util import find_spec

#: Packages that the extra `server` installs and the client does not need.
_SERVER_PACKAGES = ("click", "pydantic", "sqlalchemy", "starlette", "uvicorn")


def main() -> None:
    """Run the command line and exit. Exit with 1 and a message if the parts of the server are not installed."""
    missing = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        sys.exit(
            f"Error: the server is not installed ({', '.join(missing)} missing). This installation has only shortener.client.\n"
            "To install the server: pip install 'sms-shortener[server]'"
        )
    from shortener.cli import main as run

    run()


if __name__ == "__main__":
    main()
