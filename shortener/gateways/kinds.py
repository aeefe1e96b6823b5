"""The table of the kinds of gateways, by name. Another kind is one module with a `GatewayKind`, and one line here."""
# Tested by tests/gateways/test_store.py

from __future__ import annotations

from collections.abc import Mapping

from shortener.gateways import http, simulator
from shortener.gateways.submission import GatewayKind

KINDS: Mapping[str, GatewayKind] = {kind.name: kind for kind in (http.KIND, simulator.KIND)}
