"""The server of one worker process of `serve --workers`.

All workers accept connections from the same listening socket. A worker can stop in two ways.

SIGTERM and SIGINT mean that all workers stop. Each worker then accepts the connections that wait at the socket, so that none is
left when the last worker ends.

SIGHUP means that only this worker stops. It stops listening at once, and the other workers accept the waiting connections. For
SHUTDOWN_DELAY, it still responds on its open connections and asks its clients to close them.
"""
# Tested by tests/acceptance/test_workers_stop.py

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING

from uvicorn.supervisors.multiprocess import Process

from shortener.cli.stopping import add_stop_handlers, handle_stop_signal
from shortener.server.graceful_close import GracefulServer, leave_queue

if TYPE_CHECKING:
    from shortener.container import Service


class WorkerServer(GracefulServer):
    """The server of a worker. It stops in one of the two ways that the module describes."""

    _service: Service | None = None
    _listeners: list[socket.socket]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        self.config.loaded_app.server = self
        await super().startup(sockets)

    def handle_signals(self, service: Service) -> None:
        """Begin to handle the signals that stop the worker. Call this method when the service is open."""
        self._service = service
        add_stop_handlers(service, self.handle_exit)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._leave, service)

    def is_stopping(self) -> bool:
        return self._service is not None and self._service.is_stopping

    def _leave(self, service: Service) -> None:
        ready = service.ready
        if self.started and not service.is_stopping:
            leave_queue(self, self._listeners)
        handle_stop_signal(service, signal.SIGTERM, self.handle_exit)
        # Only this worker stops, so load balancers must keep the node. On its open connections, the worker therefore does not
        # respond with 503 to /readyz.
        service.ready = ready


class UvicornProcess(Process):
    """A process that runs `WorkerServer`. uvicorn starts the process, and a thread in it responds to the supervisor."""

    @property
    def server(self) -> WorkerServer:
        if self._server is None:
            self._server = WorkerServer(self.config)
        assert isinstance(self._server, WorkerServer)
        return self._server
