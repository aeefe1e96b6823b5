"""Fixtures for the tests of commands, such as a real server that runs while the commands are executed."""

from tests.acceptance.conftest import server as server
