"""Construction, start and stop of the whole service.

The web layer and the command line use a `Service`, which `open_service` returns. No other package builds parts for them.
"""

from shortener.container.build import open_service
from shortener.container.service import Service

__all__ = ["Service", "open_service"]
