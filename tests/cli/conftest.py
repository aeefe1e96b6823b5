"""Fixtures of the command line's tests: a real server, for commands that run beside one."""

from tests.acceptance.conftest import server as server
