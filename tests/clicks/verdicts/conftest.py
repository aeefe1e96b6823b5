"""Fixtures for the tests of verdicts."""

import pytest

from shortener.container import Service
from tests.clicks.helpers import change_settings


@pytest.fixture
async def retracting(service: Service) -> Service:
    """A service whose default application has the setting `retract_clicks`."""
    await change_settings(service, retract_clicks=True)
    return service
