"""This package builds, starts and stops the whole service. `open_service` returns a `Service`, which the web layer and the command
line use. No other package builds the objects of the service.
"""

from shortener.container.build import open_service
from shortener.container.service import Service

__all__ = ["Service", "open_service"]
