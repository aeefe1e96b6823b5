"""This module serves the static files of the portal: the style sheet, the scripts and their licences.

The URL of a file contains a hash of its content, so browsers may keep the file for ever. All files are compressed once, at the
first request for any of them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from shortener.model import record

PREFIX = "/portal/static/"
FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".toml": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}


@record
class StaticFile:
    """A static file: its content, its URL with the hash, and `integrity`, the value of the HTML attribute of this name."""

    url: str
    integrity: str
    media_type: str
    content: bytes
    compressed: bytes


@cache
def static_files() -> dict[str, StaticFile]:
    """Return all static files. The keys are their paths in the folder `static`, such as `vendor/htmx.min.js`."""
    found = {}
    for file in sorted(FOLDER.rglob("*")):
        if file.is_file():
            name, content = file.relative_to(FOLDER).as_posix(), file.read_bytes()
            digest = hashlib.sha384(content).digest()
            stem, dot, ending = name.rpartition(".") if "." in file.name else (name, "", "")
            hashed = f"{stem}.{digest.hex()[:16]}{dot}{ending}"
            integrity = "sha384-" + base64.b64encode(digest).decode()
            media_type = _TYPES.get(file.suffix, _TYPES[""])
            found[name] = StaticFile(PREFIX + hashed, integrity, media_type, content, gzip.compress(content, 9, mtime=0))
    return found


@cache
def _by_url() -> dict[str, StaticFile]:
    return {file.url: file for file in static_files().values()}


def serve_static(request: Request) -> Response | None:
    """Return the response with the static file at the path of a request, or None if there is no such file."""
    file = _by_url().get(request.url.path)
    if file is None:
        return None
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)
