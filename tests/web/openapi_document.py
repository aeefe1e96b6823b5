"""The OpenAPI document of all endpoints, which several test modules read. Its creation takes half a second."""

from __future__ import annotations

from shortener.web.endpoints import ENDPOINTS
from shortener.web.openapi import document

DOCUMENT = document(ENDPOINTS)
