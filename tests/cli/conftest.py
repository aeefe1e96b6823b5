"""Commands are tried beside a real server, too."""

from tests.acceptance.conftest import server as server
