"""All endpoints of the HTTP API, in the order of a message's life.

The OpenAPI document and the tests use this table. The router imports only the modules whose paths are requested (`routes.py`).
"""
# Tested by tests/web/test_routes.py

from __future__ import annotations

from collections.abc import Sequence

from shortener.web.endpoint import Endpoint
from shortener.web.routes import MODULES, import_endpoints

ENDPOINTS: Sequence[Endpoint] = [endpoint for module in MODULES for endpoint in import_endpoints(module)]
