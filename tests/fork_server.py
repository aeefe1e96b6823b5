"""This module starts `shortener` commands as real processes without their imports, which take four fifths of the time of a start.

A fork server is a process that has imported the modules of the service and has run the service once (warm_up.py). All test
processes of a test run share it. For each command it forks a child, which gets the arguments, the environment, the folder and the
standard streams of the command, and then runs the command as `python -m shortener` does. The child is a separate process in every
respect: it has its own memory, event loop, signals and exit code.

`start` and `run` have the arguments and results of `subprocess.Popen` and `subprocess.run`. In two cases they start Python
itself: if the variable REAL_PROCESSES is set, as `make prove` does, or if the environment of the command has other PYTHON...
variables than the test process.

A command can first execute code that changes the service, for example its clock: see `executed_first`. Tests whose subject is a
start, an import or the memory of a process use `subprocess` directly. Shell scripts of tests start commands with the words of
`shell_command` (fork_command.py).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import gc
import json
import os
import secrets
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple

ROOT = Path(__file__).parents[1]
STREAMS: Final = 3
_EXECUTED_FIRST: Final = "FORK_SERVER_EXECUTED_FIRST"  # this variable contains the path of the file that `executed_first` wrote
_LENGTH = struct.Struct("!I")
_CREDENTIALS = struct.Struct("3i")  # the process, user and group at the other end of a Unix socket


def start(
    words: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    text: bool = False,
) -> AnyProcess:
    """Start `shortener WORDS` and return the running process."""
    if _needs_real_start(env):
        command = [sys.executable, "-m", "shortener", *words]
        return subprocess.Popen(command, env=dict(env), cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, text=text)
    return _server().start(words, env, cwd or Path.cwd(), (stdin, stdout, stderr), text)


def run(
    words: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    stdout: int | None = None,
    stderr: int | None = None,
    text: bool = False,
) -> subprocess.CompletedProcess[Any]:
    """Run `shortener WORDS` until it ends. Raise subprocess.TimeoutExpired after `timeout`. If `check` is true, raise
    CalledProcessError if the exit code is not 0."""
    if capture_output:
        stdout = stderr = subprocess.PIPE
    process = start(words, env, cwd=cwd, stdout=stdout, stderr=stderr, text=text)
    with process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
    done: subprocess.CompletedProcess[Any] = subprocess.CompletedProcess(list(words), code, output, errors)
    if check:
        done.check_returncode()
    return done


def shell_command() -> str:
    """Return the words with which a shell script starts `shortener`. PYTHON... variables of the script have no effect in the fork
    server."""
    if "REAL_PROCESSES" in os.environ:
        return shlex.join([sys.executable, "-m", "shortener"])
    return shlex.join([sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_command.py")), _server().address])


def executed_first(code: str, folder: Path) -> dict[str, str]:
    """Write the Python code `code` to a file in `folder`. Return environment variables that make a command execute this code
    before anything else.

    The code must change attributes that are looked up at each call: attributes of classes and modules, or the `__code__` of a
    function. It cannot replace a function, because other modules may already have imported it by name."""
    file = folder / "sitecustomize.py"
    file.write_text(code)
    if "REAL_PROCESSES" not in os.environ:
        return {_EXECUTED_FIRST: str(file)}
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path.rstrip(os.pathsep)}  # Python executes a file with the name sitecustomize.py when it starts


def _needs_real_start(env: Mapping[str, str]) -> bool:
    return "REAL_PROCESSES" in os.environ or _variables_of_python(env) != _OWN_VARIABLES


def _variables_of_python(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("PYTHON")}


#: The PYTHON... variables with which the test process started. A test may change them later, even in `os.environ`.
_OWN_VARIABLES = _variables_of_python(os.environ)


class ForkedProcess:
    """A child of the fork server, with the interface of `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], pid: int, status: socket.socket, streams: Sequence[IO[Any] | None]) -> None:
        self.args = list(words)
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = streams
        self._status = status  # The fork server writes the exit status of the child to this socket.
        self._lock = threading.Lock()

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        """Return the exit code of the process. If a signal ended it, this is the negative number of the signal. Return None while
        it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, and return its exit code. Raise subprocess.TimeoutExpired after `timeout` seconds."""
        with self._lock:
            if self.returncode is None:
                self._status.settimeout(None if timeout is None else max(timeout, 1e-3))
                try:
                    content = self._status.recv(_LENGTH.size)
                except TimeoutError:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
                assert content, "the fork server ended before the process"
                self.returncode = os.waitstatus_to_exitcode(_LENGTH.unpack(content)[0])
                self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Read both outputs until they end, and wait until the process ends. Raise subprocess.TimeoutExpired if this
        takes longer than `timeout` seconds."""
        if self.stdin is not None:
            self.stdin.close()
        contents: list[Any] = [None, None]
        deadline = None if timeout is None else time.monotonic() + timeout

        def read(number: int, stream: IO[Any]) -> None:
            with contextlib.suppress(ValueError):  # after the time limit, the stream was closed while this thread read it
                contents[number] = stream.read()

        readers = []
        for number, stream in enumerate((self.stdout, self.stderr)):
            if stream is not None and not stream.closed:
                readers.append(threading.Thread(target=read, args=(number, stream), daemon=True))
                readers[-1].start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        return contents[0], contents[1]


AnyProcess = ForkedProcess | subprocess.Popen[Any]


class _Client:
    """The connection of this test process to the fork server. All test processes of a test run use the same fork server."""

    def __init__(self) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}-{secrets.token_hex(8)}"
        self.address = f"shortener-tests-{run}"
        self._connection = self._connect()
        self._lock = threading.Lock()
        # When this connection is closed, the fork server kills the processes that this test process has started.
        atexit.register(self._connection.close)

    def _connect(self) -> socket.socket:
        """Connect to the fork server. Start it if no other test process has started it."""
        name = f"\0{self.address}"  # a name in Linux's abstract namespace, so that no file is created
        while True:
            connection, listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            with listener:
                try:
                    connection.connect(name)
                    return connection
                except ConnectionRefusedError:
                    connection.close()
                try:
                    listener.bind(name)
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        continue  # Another test process is starting the fork server at this moment.
                    raise
                listener.listen()
                descriptor = listener.fileno()
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(name)
                command = [sys.executable, "-m", "tests.fork_server", str(descriptor)]
                null = subprocess.DEVNULL
                subprocess.run(command, cwd=ROOT, pass_fds=[descriptor], stdin=null, stdout=null, check=True)
                return connection

    def start(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, streams: Sequence[int | IO[Any] | None], text: bool
    ) -> ForkedProcess:
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        close: list[int] = []
        for number, stream in enumerate(streams):
            own, child, owned = _open_stream(number, stream, theirs, text=text)
            ours.append(own)
            theirs.append(child)
            if owned:
                close.append(child)
        status, child_status = socket.socketpair()
        request = json.dumps({"words": [str(word) for word in words], "env": dict(env), "cwd": str(cwd)}).encode()
        with self._lock:
            self._connection.sendall(_LENGTH.pack(len(request)) + request)
            socket.send_fds(self._connection, [b"f"], [*theirs, child_status.fileno()])
            pid = _LENGTH.unpack(_receive(self._connection, _LENGTH.size))[0]
        child_status.close()
        for descriptor in close:
            os.close(descriptor)
        return ForkedProcess(words, pid, status, ours)


@functools.cache
def _server() -> _Client:
    return _Client()


def _open_stream(
    number: int, stream: int | IO[Any] | None, earlier: Sequence[int], *, text: bool
) -> tuple[IO[Any] | None, int, bool]:
    """Return the ends of one standard stream: the test's end, and the descriptor of the child's end. Also return whether this
    descriptor must be closed."""
    if stream is None:
        return None, number, False
    if stream == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR), True
    if stream == subprocess.STDOUT:
        return None, earlier[1], False
    if stream == subprocess.PIPE:
        read, write = os.pipe()
        own, child = (write, read) if number == 0 else (read, write)
        mode = "w" if number == 0 else "r"
        return open(own, mode if text else f"{mode}b"), child, True
    return None, stream if isinstance(stream, int) else stream.fileno(), False


def _receive(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes. If the connection is closed, return fewer bytes."""
    content = b""
    while len(content) < size and (part := connection.recv(size - len(content))):
        content += part
    return content


# The following functions run in the fork server.


class _Child(NamedTuple):
    pid: int
    status: socket.socket  # The fork server writes the exit status of the child to this socket.
    connection: socket.socket  # The connection of the process that started the child.


def _serve(listener: socket.socket) -> list[str]:
    """Fork a child for each request. Requests come from test processes and from fork_command.py. In the child, return the words
    of its command.

    When a process closes its connection or ends, kill the children that it started. When no connection is left, exit."""
    children: dict[int, _Child] = {}  # the children by pidfd
    connections: list[socket.socket] = []
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                accepted = listener.accept()[0]
                credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
                    accepted.close()  # reject a process of another user
                    continue
                connections.append(accepted)
                selector.register(accepted, selectors.EVENT_READ)
                continue
            if not isinstance(connection := key.fileobj, socket.socket):
                pidfd = key.fd
                selector.unregister(pidfd)
                child = children.pop(pidfd)
                os.close(pidfd)
                with contextlib.suppress(OSError):  # the test has closed its socket, because it does not need the exit status
                    child.status.sendall(_LENGTH.pack(os.waitpid(child.pid, 0)[1]))
                child.status.close()
                continue
            head = _receive(connection, _LENGTH.size)
            if not head:
                for child in children.values():
                    if child.connection is connection:
                        os.kill(child.pid, signal.SIGKILL)
                selector.unregister(connection)
                connections.remove(connection)
                connection.close()
                if not connections:
                    os._exit(0)
                continue
            request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
            _, descriptors, _, _ = socket.recv_fds(connection, 1, STREAMS + 1)
            pid = os.fork()
            if pid == 0:
                selector.close()
                for opened in (listener, *connections, *(child.status for child in children.values())):
                    opened.detach()  # `_become` closes the descriptors
                return _become(request, descriptors)
            status = socket.socket(fileno=descriptors.pop())
            for descriptor in descriptors:
                os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = _Child(pid, status, connection)
            selector.register(pidfd, selectors.EVENT_READ)
            connection.sendall(_LENGTH.pack(pid))


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> list[str]:
    """Replace the streams, the environment and the folder of this process by those of a command. Return the words of the
    command."""
    for number, descriptor in enumerate(descriptors[:STREAMS]):
        os.dup2(descriptor, number)
    os.closerange(STREAMS, 1 << 16)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    time.tzset()
    words: list[str] = request["words"]
    return words


def main() -> None:
    if os.fork():
        # The parent exits at once. The fork server must not be a child of the test process that starts it, because it may run
        # longer.
        os._exit(0)
    listener = socket.socket(fileno=int(sys.argv[1]))
    # Under `nohup`, SIGHUP is ignored, and the commands that the tests start would inherit this. Therefore restore its default
    # action.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from tests.warm_up import warm_up

    warm_up()
    gc.collect()
    gc.freeze()
    from shortener import __main__ as command

    words = _serve(listener)
    sys.argv = [str(command.__file__), *words]
    sys.modules["__main__"].__package__ = "shortener"  # click uses this to find the name of the program
    if file := os.environ.get(_EXECUTED_FIRST):
        exec(compile(Path(file).read_text(), file, "exec"), {"__name__": "sitecustomize"})
    try:
        command.main()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            _end_process(ended.code or 0)
        raise


def _end_process(code: int) -> None:
    """End this process as Python does, but do not destroy all modules. That would take longer than most commands.

    If an output cannot be written, return, so that Python reports the error."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    gc.collect()  # this collection reports objects that were not closed
    with contextlib.suppress(OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
