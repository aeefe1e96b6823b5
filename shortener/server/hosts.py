"""This module parses the Host header of a request. `split_host` caches its latest results, because most requests have one of the
few hosts of the installation. Callers must not pass a host that is longer than MAX_HOST_BYTES: a client could otherwise fill the
cache with long names.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_HOST_BYTES = 260  # a name of 253 characters, a final dot and a port

_PORT = re.compile(r":\d+$")


@lru_cache(maxsize=1024)
def split_host(host: bytes) -> tuple[str, str]:
    """Return (name without port, name with port) from a Host header, both in lower case. A final dot of the name is removed."""
    text = host.decode("latin-1").lower()
    with_dot = _PORT.sub("", text)
    name = with_dot.rstrip(".")
    return name, name + text[len(with_dot) :]
