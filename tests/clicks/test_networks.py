"""Tests of the network list: text files, MaxMind DB files, and hits from the networks of hosting providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from shortener.clicks.networks import NetworkFileError, NetworkInfo, _read_record, open_networks
from shortener.model import Verdict
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, create_link, fetch_rows
from tests.conftest import MakeService, client_of

LIST = """
# network, country, name, kind
203.0.113.0/24, de, AS64500 Example
203.0.113.128/25,NL,AS64501 Cloud,hosting
2001:db8::/32,FR,,hosting
127.0.0.0/8,,Loopback,hosting
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "networks.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("203.0.113.1", NetworkInfo("DE", "AS64500 Example", False)),
        ("203.0.113.200", NetworkInfo("NL", "AS64501 Cloud", True)),
        ("::ffff:203.0.113.200", NetworkInfo("NL", "AS64501 Cloud", True)),
        ("2001:db8:1::", NetworkInfo("FR", None, True)),
        ("198.51.100.1", NetworkInfo()),
        ("", NetworkInfo()),
        ("unknown", NetworkInfo()),
    ],
)
def test_the_network_with_the_longest_prefix_determines_the_result(tmp_path: Path, address: str, expected: NetworkInfo) -> None:
    networks = open_networks([write(tmp_path, LIST)])
    assert networks is not None
    assert networks.find(address) == expected


@pytest.mark.parametrize("line", ["203.0.113.0/99", "x", "203.0.113.0/24,Germany", "203.0.113.0/24,DE,name,vpn"])
def test_the_error_for_an_invalid_line_of_a_network_list_contains_the_line_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(NetworkFileError, match=r"networks\.csv, line 2: "):
        open_networks([write(tmp_path, f"198.51.100.0/24\n{line}")])


def test_a_missing_or_damaged_network_list_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(NetworkFileError, match=r"none\.csv"):
        open_networks([tmp_path / "none.csv"])
    damaged = tmp_path / "damaged.mmdb"
    damaged.write_bytes(b"no database")
    with pytest.raises(NetworkFileError, match=r"damaged\.mmdb"):
        open_networks([damaged])
    assert open_networks([]) is None


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"country": {"iso_code": "DE"}}, NetworkInfo("DE")),
        ({"autonomous_system_number": 64500, "autonomous_system_organization": "Example"}, NetworkInfo(None, "AS64500 Example")),
        ({"country": "nl", "asn": "AS64501", "as_name": "Cloud"}, NetworkInfo("NL", "AS64501 Cloud")),
        ({"is_hosting_provider": True}, NetworkInfo(is_hosting=True)),
        ({"traits": {"user_type": "hosting"}}, NetworkInfo(is_hosting=True)),
        ({}, NetworkInfo()),
    ],
)
def test_records_of_several_vendors_of_network_lists_are_read(record: dict[str, object], expected: NetworkInfo) -> None:
    assert _read_record(record) == expected


async def test_a_hit_from_a_hosting_network_is_suspected(make_service: MakeService, tmp_path: Path) -> None:
    service = await make_service(network_files=(write(tmp_path, LIST),))
    assert service.first_credentials is not None
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        link = await create_link(client)
        assert (await client.get(link, headers=PHONE_HEADERS)).status_code == 302
        (hit,) = await fetch_rows(service, schema.hits)
        assert (hit.verdict, hit.rule) == (Verdict.SUSPECTED, "hosting_network")
        (listed,) = (await client.get("/api/v1/clicks")).json()["clicks"]
        assert listed["network"] == "Loopback"
