"""Tests of the network list: text files, MaxMind DB files, and hits from the networks of hosting providers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet  # type: ignore[import-untyped]

from shortener.clicks.networks import NetworkFileError, NetworkInfo, _read_record, open_networks
from shortener.model import Verdict
from shortener.reporting.count_check import verify
from shortener.reporting.rollup_check import verify_rollups
from shortener.storage import schema
from tests.clicks.helpers import PHONE_HEADERS, create_link, fetch_rows
from tests.conftest import Clock, MakeService, client_of

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
def test_the_listed_network_with_the_longest_prefix_determines_the_country_of_an_address(
    tmp_path: Path, address: str, expected: NetworkInfo
) -> None:
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
def test_network_lists_in_the_formats_of_several_vendors_are_parsed(record: dict[str, object], expected: NetworkInfo) -> None:
    assert _read_record(record) == expected


def write_mmdb(path: Path, kind: str, records: dict[str, dict[str, object]]) -> Path:
    """Write a MaxMind DB file. `records` contains the record of each network."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type=kind)
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def test_addresses_are_found_in_files_in_the_maxmind_db_format(tmp_path: Path) -> None:
    country = {"country": {"iso_code": "DE", "names": {"en": "Germany"}}, "continent": {"code": "EU"}}
    asn = {"autonomous_system_number": 64501, "autonomous_system_organization": "Cloud"}
    files = [
        write_mmdb(tmp_path / "country.mmdb", "GeoLite2-Country", {"203.0.113.0/24": country, "2001:db8::/32": country}),
        write_mmdb(tmp_path / "asn.mmdb", "GeoLite2-ASN", {"203.0.113.128/25": asn}),
        write_mmdb(tmp_path / "type.mmdb", "Connection-Type", {"203.0.113.192/26": {"traits": {"user_type": "hosting"}}}),
        write(tmp_path, "198.51.100.0/24,FR,AS64502 Text"),
    ]
    networks = open_networks(files)
    assert networks is not None
    assert networks.find("203.0.113.1") == NetworkInfo("DE")
    assert networks.find("203.0.113.130") == NetworkInfo("DE", "AS64501 Cloud")
    assert networks.find("203.0.113.200") == NetworkInfo("DE", "AS64501 Cloud", is_hosting=True)
    assert networks.find("2001:db8::1") == NetworkInfo("DE")
    assert networks.find("198.51.100.7") == NetworkInfo("FR", "AS64502 Text")
    assert networks.find("192.0.2.1") == NetworkInfo()


async def test_the_country_of_a_click_is_stored_counted_and_shown_beside_the_country_of_the_phone_number(
    make_service: MakeService, tmp_path: Path, clock: Clock
) -> None:
    file = write_mmdb(tmp_path / "country.mmdb", "GeoLite2-Country", {"127.0.0.0/8": {"country": {"iso_code": "CH"}}})
    service = await make_service(network_files=(file,), ip_privacy="none")
    assert service.first_credentials is not None
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        link = await create_link(client)
        await client.get(link, headers=PHONE_HEADERS)
        (hit,) = await fetch_rows(service, schema.hits)
        assert (hit.verdict, hit.country, hit.address) == (Verdict.HUMAN, "CH", "")
        (listed,) = (await client.get("/api/v1/clicks")).json()["clicks"]
        assert (listed["country"], listed["click_country"]) == ("US", "CH")
        assert '"CH"' not in (await client.get("/api/v1/clicks.csv")).text
        assert ",CH," in (await client.get("/api/v1/clicks.csv")).text
        events = (await client.get("/api/v1/events")).json()["events"]
        assert {(event["country"], event["click_country"]) for event in events if event["click_id"]} == {("US", "CH")}
        await service.fanout.flush()
        clock.forward(minutes=5)
        await service.devices.catch_up()
        for _ in range(2):
            figures = (await client.get("/api/v1/sms/stats")).json()
            assert (figures["clicks"], figures["click_countries"]) == (1, {"CH": 1})
            (group,) = (await client.get("/api/v1/sms/stats/by-country")).json()["countries"]
            assert (group["country"], group["click_countries"]) == ("US", {"CH": 1})
            await service.jobs.table["counts"].step()
        period = (clock() - timedelta(days=1), clock() + timedelta(days=1))
        assert await service.database.read(verify, *period) == []
        assert await service.database.read(verify_rollups, *period) == []


async def test_without_a_network_list_hits_have_no_country(make_service: MakeService) -> None:
    service = await make_service()
    assert service.first_credentials is not None
    async with client_of(service, {"X-API-Key": service.first_credentials.api_key}) as client:
        await client.get(await create_link(client), headers=PHONE_HEADERS)
        (hit,) = await fetch_rows(service, schema.hits)
        assert hit.country is None
        assert (await client.get("/api/v1/sms/stats")).json()["click_countries"] == {}


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
