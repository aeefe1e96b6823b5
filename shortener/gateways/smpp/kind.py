"""The gateway kind `smpp` (gateways/kinds.py). The modules that need the library `smpplib` are imported when the first
connection is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shortener.gateways.smpp.settings import SmppSettings
from shortener.gateways.submission import GatewayConfig, GatewayConnection, GatewayContext


class _SmppKind:
    """The gateway kind `smpp`, whose gateways use the protocol SMPP 3.4."""

    name = "smpp"
    settings_model: type[BaseModel] = SmppSettings

    def describe(self, settings: BaseModel) -> Mapping[str, Any]:
        """Return the settings without the password."""
        assert isinstance(settings, SmppSettings)
        shown = settings.model_dump(mode="json", exclude={"password", "tls_ca"})
        return {**shown, "password_set": bool(settings.password), "tls_ca_set": bool(settings.tls_ca)}

    def target(self, settings: BaseModel) -> tuple[str, int] | None:
        """Return the host and the port of the gateway's URL."""
        assert isinstance(settings, SmppSettings)
        return settings.target

    def operator_values(self, settings: BaseModel) -> Mapping[str, object]:
        """Return the URL, which only the operator can change if the gateway may have a private address."""
        assert isinstance(settings, SmppSettings)
        return {"url": settings.url}

    def open(self, config: GatewayConfig, context: GatewayContext) -> GatewayConnection:
        from shortener.gateways.smpp.gateway import SmppGateway

        return SmppGateway(config, context)


KIND = _SmppKind()
