"""Tests of `shortener demo` that need no server."""

from __future__ import annotations

import socket

from click.testing import CliRunner

from shortener.cli.demo import demo


def test_the_demo_command_reports_a_port_in_use_before_it_generates_traffic() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = CliRunner().invoke(demo, ["--portal", "--port", str(listener.getsockname()[1])])
    assert result.exit_code == 1
    assert "is already in use" in result.output
    assert "Making three weeks" not in result.output
