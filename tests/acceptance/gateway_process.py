"""A gateway in a separate process, so that tests can kill it. It accepts each message, and appends the reference of the message
to a file before it responds.

Start it with `python -m tests.acceptance.gateway_process PORT FILE`.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """An HTTP request handler of the gateway. It accepts every message."""

    protocol_version = "HTTP/1.1"
    log_file = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        reference = json.loads(body)["reference"]
        os.write(self.log_file, f"{reference}\n".encode())
        response = json.dumps({"id": f"gw-{reference}"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


if __name__ == "__main__":
    Handler.log_file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
