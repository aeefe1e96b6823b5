"""Run the `shortener` command. `python -m shortener` does the same.

If only the client library is installed, print how to install the server, which contains the commands.
"""
# Tested by tests/acceptance/test_installation.py

from __future__ import annotations

import sys
from importlib.util import find_spec

#: Packages that the command line needs. The extra `server` installs them; the client library does not need them.
_SERVER_PACKAGES = ("click", "pydantic", "sqlalchemy", "starlette", "uvicorn")


def main() -> None:
    """Run the command line and exit. If the packages of the server are not installed, print a message and exit with 1."""
    missing = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        sys.exit(
            f"Error: the server is not installed ({', '.join(missing)} missing). This installation has only shortener.client.\n"
            "To install the server, run `make setup` in a clone of the repository, and use its .venv/bin/shortener."
        )
    from shortener.cli import main as run

    run()


if __name__ == "__main__":
    main()
