"""This module opens listening sockets. A command opens its socket before it creates anything, so that it fails early if the port
is in use."""
# Tested by tests/cli/test_serve.py

from __future__ import annotations

import errno
import socket

import click


def bind(host: str, port: int, *, setting: str = "") -> socket.socket:
    """Return a socket that is bound to `host` and `port`. Port 0 selects a free port. Raise ClickException with the reason if
    this fails, for example because the port is in use.

    `setting` is the name of the setting that the option --port overrides, or ""."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            choice = f"the setting {setting} or the option --port" if setting else "the option --port"
            raise click.ClickException(
                f"port {port} on {host} is already in use. Stop the process that uses it (`ss -ltnp` lists the processes), or "
                f"choose another port with {choice}"
            ) from None
        raise click.ClickException(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None
    return listener


def port_of(listener: socket.socket) -> int:
    """Return the port of a bound socket."""
    port: int = listener.getsockname()[1]
    return port
