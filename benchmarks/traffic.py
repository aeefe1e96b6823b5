"""The requests of real handsets, as they arrive from a proxy.

User agents and their frequencies are those of mobile browsers in the data of the package fake-useragent (about 700 agents). Each
request has the headers that the family of its browser sends, in the order of that family. Each request has a different client
address in X-Forwarded-For. The service and the baseline get the same requests.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from ipaddress import IPv4Address
from pathlib import Path

#: The value of SHORTENER_TRUSTED_PROXIES for a server that gets the requests of this module.
TRUSTED_PROXIES = "127.0.0.1"
HEADER_BLOCKS = 4096  # number of combinations of a user agent and a language, chosen by their frequencies

#: Values of the header Accept-Language, with the weight of each.
LANGUAGES = {
    "en-US,en;q=0.9": 30,
    "en-GB,en;q=0.9": 8,
    "es-ES,es;q=0.9": 6,
    "es-MX,es;q=0.9,en;q=0.8": 5,
    "pt-BR,pt;q=0.9,en-US;q=0.8,en;q=0.7": 8,
    "de-DE,de;q=0.9,en;q=0.8": 6,
    "fr-FR,fr;q=0.9": 6,
    "it-IT,it;q=0.9": 4,
    "pl-PL,pl;q=0.9,en-US;q=0.8,en;q=0.7": 3,
    "nl-NL,nl;q=0.9": 2,
    "tr-TR,tr;q=0.9": 3,
    "ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7": 3,
    "ar-SA,ar;q=0.9,en;q=0.8": 2,
    "hi-IN,hi;q=0.9,en-IN;q=0.8,en;q=0.7": 5,
    "id-ID,id;q=0.9,en-US;q=0.8,en;q=0.7": 4,
    "ja-JP,ja;q=0.9": 5,
    "zh-CN,zh;q=0.9": 3,
    "vi-VN,vi;q=0.9": 2,
}

_CHROME_ACCEPT = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
_OTHER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@cache
def agents() -> dict[str, float]:
    """Return the user agents of phones and tablets with their weights."""
    file = Path(str(distribution("fake-useragent").locate_file("fake_useragent/data/browsers.jsonl")))
    weights: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if row["type"] in ("mobile", "tablet"):
            weights[row["useragent"]] += row["percent"]
    return dict(weights)


def headers(agent: str, language: str) -> dict[str, str]:
    """Return the headers that a browser with this user agent sends for a tapped link, without Host and headers of a proxy."""
    if "Chrome/" in agent:
        version = agent.partition("Chrome/")[2].partition(".")[0]
        return {
            "sec-ch-ua": f'"Chromium";v="{version}", "Google Chrome";v="{version}", "Not_A Brand";v="24"',
            "sec-ch-ua-mobile": "?1",
            "sec-ch-ua-platform": '"Android"',
            "Upgrade-Insecure-Requests": "1",
            "User-Agent": agent,
            "Accept": _CHROME_ACCEPT,
            "Sec-Fetch-Site": "none",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-User": "?1",
            "Sec-Fetch-Dest": "document",
            "Accept-Encoding": "gzip, deflate, br, zstd",
            "Accept-Language": language,
        }
    if "Firefox/" in agent:
        return {
            "User-Agent": agent,
            "Accept": _OTHER_ACCEPT,
            "Accept-Language": language,
            "Accept-Encoding": "gzip, deflate, br, zstd",
            "Upgrade-Insecure-Requests": "1",
            "Sec-Fetch-Dest": "document",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Site": "none",
            "Sec-Fetch-User": "?1",
        }
    return {
        "Sec-Fetch-Dest": "document",
        "User-Agent": agent,
        "Accept": _OTHER_ACCEPT,
        "Sec-Fetch-Site": "none",
        "Sec-Fetch-Mode": "navigate",
        "Accept-Language": language,
        "Priority": "u=0, i",
        "Accept-Encoding": "gzip, deflate, br",
    }


@cache
def header_blocks() -> tuple[dict[str, str], ...]:
    """Return HEADER_BLOCKS sets of headers, chosen at random by the frequencies of user agents and languages. Each call returns
    the same sets."""
    chance = random.Random(1)
    drawn = chance.choices(list(agents()), list(agents().values()), k=HEADER_BLOCKS)
    languages = chance.choices(list(LANGUAGES), list(LANGUAGES.values()), k=HEADER_BLOCKS)
    return tuple(headers(agent, language) for agent, language in zip(drawn, languages, strict=True))


# The script of wrk only joins strings, so that it uses little processor time. A linear congruential generator modulo 2^30 creates
# the client addresses, so that no address occurs twice. Two of three addresses are IPv4. The others are IPv6, each in a different
# /64 network. The function `init` sets the Host header, because wrk does not know the header before it calls `init`.
_SCRIPT = """
local paths, blocks = {{}}, {{}}
local octets = {{{octets}}}
local n, x, floor, format = 0, {seed}, math.floor, string.format
function init()
  local host = " HTTP/1.1\\r\\nHost: " .. wrk.headers["Host"] .. "\\r\\n"
  for line in io.lines("{paths}") do paths[#paths + 1] = "GET " .. line end
  for line in io.lines("{blocks}") do blocks[#blocks + 1] = host .. line:gsub("\\t", "\\r\\n") .. "\\r\\nX-Forwarded-For: " end
end
local function address()
  x = (x * 1664525 + 1013904223) % 1073741824
  local high, low = floor(x / 65536), x % 65536
  if n % 3 == 0 then return format("2600:%x:%x:%x::1", 4096 + floor(high / 4096), high % 4096, low) end
  return octets[floor(high / 256) + 1] .. "." .. high % 256 .. "." .. floor(low / 256) .. "." .. low % 256
end
function request()
  n = n + 1
  return paths[(n - 1) % #paths + 1] .. blocks[(n * 1597) % #blocks + 1] .. address()
    .. "\\r\\nX-Forwarded-Proto: https\\r\\n\\r\\n"
end
"""


def request(number: int, path: str, host: str) -> bytes:
    """Return the request number `number` for this path. It is of the same kind as the requests of `script`."""
    block = header_blocks()[number * 1597 % HEADER_BLOCKS]
    address = IPv4Address((20 << 24) + number * 7919 % (1 << 24))
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(f"{key}: {value}" for key, value in block.items())]
    return "\r\n".join([*lines, f"X-Forwarded-For: {address}", "X-Forwarded-Proto: https", "", ""]).encode()


#: First octets of IPv4 addresses that providers use. None is private or reserved.
_OCTETS = [octet for octet in range(20, 200) if octet not in (22, 26, 28, 29, 30, 33, 55, 100, 127, 169, 172, 192, 198)][:64]


def script(folder: Path, name: str, paths: Sequence[str]) -> Path:
    """Write a script for wrk that requests each path once, in order, and then starts again. Return the script's file."""
    place, listed, blocks = (folder / f"{name}.{suffix}" for suffix in ("lua", "paths", "headers"))
    listed.write_text("\n".join(paths) + "\n")
    blocks.write_text("".join("\t".join(f"{key}: {value}" for key, value in block.items()) + "\n" for block in header_blocks()))
    octets = ", ".join(f'"{octet}"' for octet in _OCTETS)
    seed = random.Random(name).getrandbits(30)
    place.write_text(_SCRIPT.format(paths=listed, blocks=blocks, octets=octets, seed=seed))
    return place
