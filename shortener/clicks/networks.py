"""The network list contains the country, the network and the hosting provider of IP addresses. The operator provides the files of
the list.

The setting NETWORK_FILES contains the paths of MaxMind DB files (`.mmdb`: country, city, ASN or connection type, of any vendor)
or text files. Each line of a text file is `NETWORK,COUNTRY,NAME,hosting`, for example `203.0.113.0/24,DE,AS64500
Example,hosting`. Only the first field is required. The files are read once at the start, and the program downloads nothing.
Without files, IP addresses are not looked up.

`open_networks` raises NetworkFileError with the file and the line if a file is invalid.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from shortener.model import Verdict

HOSTING_RULE = "hosting_network"
_MAX_CACHED_ADDRESSES = 16_384
_COUNTRY = re.compile(r"[A-Za-z]{2}")


class NetworkFileError(Exception):
    """Raised if a file of the network list cannot be used. The text contains the file, the line and the reason."""


class NetworkInfo(NamedTuple):
    """The entry of the network list for an IP address. `country` is an ISO 3166 code of two letters. `network` is a name such as
    "AS64500 Example"."""

    country: str | None = None
    network: str | None = None
    is_hosting: bool = False


UNKNOWN_NETWORK = NetworkInfo()


class Networks:
    """The network list, made of one or more files."""

    def __init__(self, tables: Sequence[_TextTable | _MaxMindFile]) -> None:
        self._tables = tables
        self.find = lru_cache(maxsize=_MAX_CACHED_ADDRESSES)(self._find)

    def _find(self, address: str) -> NetworkInfo:
        """Return the data of the files about an IP address. Each field comes from the first file that contains it. Return
        UNKNOWN_NETWORK if the text is not an address."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return UNKNOWN_NETWORK
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        found = [table.find(parsed) for table in self._tables]
        return NetworkInfo(
            next((one.country for one in found if one.country), None),
            next((one.network for one in found if one.network), None),
            any(one.is_hosting for one in found),
        )

    def classify(self, address: str, verdict: Verdict, rule: str) -> tuple[Verdict, str]:
        """Return the new verdict and rule of a hit from the IP address `address`. A HUMAN hit from a hosting provider becomes
        SUSPECTED. Other hits keep `verdict` and `rule`."""
        if verdict is Verdict.HUMAN and self.find(address).is_hosting:
            return Verdict.SUSPECTED, HOSTING_RULE
        return verdict, rule


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _TextTable:
    """The networks of a text file. If several networks contain an IP address, the one with the longest prefix is used."""

    def __init__(self, path: Path) -> None:
        # The outer key is (IP version, prefix length), and the inner key is the first address of the network.
        self._networks: dict[tuple[int, int], dict[int, NetworkInfo]] = {}
        for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
            text = line.partition("#")[0].strip()
            if text:
                try:
                    self._add(text)
                except ValueError as error:
                    raise NetworkFileError(f"{path}, line {number}: {error}") from None
        self._lengths = sorted(self._networks, reverse=True)

    def _add(self, text: str) -> None:
        network_text, country, name, kind, *_ = [*(part.strip() for part in text.split(",")), "", "", ""]
        network = ipaddress.ip_network(network_text, strict=False)
        if country and not _COUNTRY.fullmatch(country):
            raise ValueError(f"{country!r} is not a country code of two letters")
        if kind not in ("", "hosting"):
            raise ValueError(f"{kind!r} must be empty or `hosting`")
        info = NetworkInfo(country.upper() or None, name or None, kind == "hosting")
        self._networks.setdefault((network.version, network.prefixlen), {})[int(network.network_address)] = info

    def find(self, address: _Address) -> NetworkInfo:
        bits, number = address.max_prefixlen, int(address)
        for version, length in self._lengths:
            if version == address.version:
                first = number >> (bits - length) << (bits - length)
                if (info := self._networks[version, length].get(first)) is not None:
                    return info
        return UNKNOWN_NETWORK


class _MaxMindFile:
    """A file of the network list in the MaxMind DB format."""

    def __init__(self, path: Path) -> None:
        import maxminddb  # imported here, because only installations with a MaxMind DB file need this package

        try:
            self._reader = maxminddb.open_database(path)
        except (maxminddb.InvalidDatabaseError, ValueError) as error:
            raise NetworkFileError(f"{path}: {error}") from None

    def find(self, address: _Address) -> NetworkInfo:
        try:
            record: Any = self._reader.get(address)
        except ValueError:  # the IP address is IPv6, and the file contains only IPv4 networks
            return UNKNOWN_NETWORK
        return _read_record(record) if isinstance(record, dict) else UNKNOWN_NETWORK


def _read_record(record: Mapping[str, Any]) -> NetworkInfo:
    """Return the data in a record of a file of MaxMind, DB-IP or IPinfo."""
    country = record.get("country") or record.get("registered_country") or record.get("country_code")
    if isinstance(country, dict):
        country = country.get("iso_code")
    traits = record.get("traits") if isinstance(record.get("traits"), dict) else {}
    number = record.get("autonomous_system_number") or record.get("asn") or (traits or {}).get("autonomous_system_number")
    name = record.get("autonomous_system_organization") or record.get("as_name") or record.get("name")
    asn = f"AS{number}" if isinstance(number, int) else number
    network = " ".join(str(part) for part in (asn, name) if part) or None
    fields = {**record, **(traits or {})}
    is_hosting = any(bool(fields.get(flag)) for flag in ("is_hosting_provider", "hosting", "is_hosting"))
    kinds = (fields.get("connection_type"), fields.get("user_type"), fields.get("type"))
    is_hosting = is_hosting or any(str(kind).lower() in ("hosting", "data center", "datacenter") for kind in kinds if kind)
    valid = isinstance(country, str) and _COUNTRY.fullmatch(country) is not None
    return NetworkInfo(str(country).upper() if valid else None, network, is_hosting)


def open_networks(files: Sequence[Path]) -> Networks | None:
    """Open the files of the network list. Return None if there are no files. Raise NetworkFileError if a file is invalid."""
    tables: list[_TextTable | _MaxMindFile] = []
    for path in files:
        try:
            tables.append(_MaxMindFile(path) if path.suffix == ".mmdb" else _TextTable(path))
        except (OSError, UnicodeDecodeError) as error:
            raise NetworkFileError(f"{path}: {error}") from None
    return Networks(tables) if tables else None
