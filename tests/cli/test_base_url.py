import pytest

from shortener.cli.base_url import unreachable_links
from shortener.settings_sources import load


@pytest.mark.parametrize(
    ("variables", "is_refused"),
    [
        ({}, False),
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "::", "PORT": "9000"}, True),
        ({"HOST": "192.0.2.7"}, True),
        ({"TRUSTED_PROXIES": "127.0.0.1"}, True),
        ({"HOST": "localhost"}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "127.0.0.2"}, False),
        ({"HOST": "0.0.0.0", "BASE_URL": "https://go.example"}, False),
        ({"HOST": "0.0.0.0", "BASE_URL": "http://localhost:8000"}, False),
        ({"HOST": "0.0.0.0", "BASE_URL": "http://127.0.0.1:8000"}, False),
        ({"TRUSTED_PROXIES": "127.0.0.1", "BASE_URL": "http://127.0.0.1:9000", "PORT": "9000"}, False),
    ],
)
def test_a_local_base_url_is_rejected_if_other_machines_can_reach_the_service(variables: dict[str, str], is_refused: bool) -> None:
    settings = load({f"SHORTENER_{name}": value for name, value in variables.items()})
    assert (unreachable_links(settings) is not None) is is_refused
