"""The table of the kinds of gateways, by name. To add a kind, write a module with a `GatewayKind`, and add one line here."""
# Tested by tests/gateways/test_store.py

from __future__ import annotations

from collections.abc import Mapping

from shortener.gateways import http, simulator
from shortener.gateways.smpp import kind as smpp
from shortener.gateways.submission import GatewayKind

KINDS: Mapping[str, GatewayKind] = {kind.name: kind for kind in (http.KIND, smpp.KIND, simulator.KIND)}
#: The kinds whose connections are kept open, because their gateways send reports and replies on them.
LISTENING = frozenset({smpp.KIND.name})
