"""The server of one worker process of `serve --workers`.

All workers accept connections from one listening socket, so a worker stops in one of two ways. SIGTERM and SIGINT mean that all
workers stop: each worker accepts the connections that wait, so that none waits when the last worker ends. SIGHUP means that the
other workers continue: the worker stops listening at once and leaves the queue to them. For SHUTDOWN_DELAY it responds on its open
connections and asks its clients to close them.
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
    """A server that knows whether other workers continue to listen when it stops."""

    _service: Service | None = None
    _listeners: list[socket.socket]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = sockets or []
        self.config.loaded_app.server = self
        await super().startup(sockets)

    def handle_signals(self, service: Service) -> None:
        """Handle the signals that stop the worker, from the moment when its service is open."""
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
        # Load balancers must keep the node, also if they have an open connection to this worker: /readyz does not respond with 503.
        service.ready = ready


class UvicornProcess(Process):
    """A process that runs `WorkerServer`. uvicorn starts it and responds to the supervisor in a thread of it."""

    @property
    def server(self) -> WorkerServer:
        if self._server is None:
            self._server = WorkerServer(self.config)
        assert isinstance(self._server, WorkerServer)
        return self._server
