"""Run `shortener WORDS` in a child of the fork server, from the shell script of a test: python fork_command.py ADDRESS WORDS ...

The child has the standard streams, the environment and the folder of this process. This process forwards signals to the child,
and exits with the exit code of the child. It imports only small modules, so that a command of a script takes little processor
time (fork_server.py).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from types import FrameType

LENGTH = struct.Struct("!I")


def main() -> None:
    address, *words = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{address}")
    status, status_of_child = socket.socketpair()
    request = json.dumps({"words": words, "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    connection.sendall(LENGTH.pack(len(request)) + request)
    socket.send_fds(connection, [b"f"], [0, 1, 2, status_of_child.fileno()])
    status_of_child.close()
    pid = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))[0]

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    ended = status.recv(LENGTH.size, socket.MSG_WAITALL)
    code = os.waitstatus_to_exitcode(LENGTH.unpack(ended)[0]) if ended else 1
    sys.exit(code if code >= 0 else 128 - code)


main()
