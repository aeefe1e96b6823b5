"""Tests of the parser that finds the device, the operating system and the browser in a user agent."""

from __future__ import annotations

import pytest
import ua_parser
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.verdicts import samples
from shortener.clicks.user_agents import MAX_AGENT_LENGTH, OTHER_BROWSER, Device, _kind, browser_name, parse_device
from tests.one_test import in_one_test


@in_one_test
@pytest.mark.parametrize(
    ("device", "agent"),
    [
        (
            Device("phone", "iOS", "Mobile Safari"),
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/26.6.1 Mobile/15E148 Safari/604.1",
        ),
        (
            Device("phone", "Android", "Chrome Mobile"),
            "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile Safari/537.36",
        ),
        (
            Device("phone", "KaiOS", "Firefox Mobile"),
            "Mozilla/5.0 (Mobile; Nokia_2780_Flip; rv:84.0) Gecko/84.0 Firefox/84.0 KAIOS/3.1",
        ),
        (
            Device("tablet", "iOS", "Mobile Safari"),
            "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.5 Mobile/15E148 Safari/604.1",
        ),
        (
            Device("tablet", "Android", "Chrome"),
            "Mozilla/5.0 (Linux; Android 13; SM-X900) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/112.0.0.0 Safari/537.36",
        ),
        (
            Device("tablet", "Android", "Amazon Silk"),
            "Mozilla/5.0 (Linux; Android 12; KFTRWI) AppleWebKit/537.36 (KHTML, like Gecko) "
            "Silk/108.4.6 like Chrome/108.0.5359.220 Safari/537.36",
        ),
        (
            Device("desktop", "Windows", "Edge"),
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
        ),
        (
            Device("desktop", "Mac OS X", "Safari"),
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Safari/605.1.15",
        ),
        (Device("desktop", "Linux", "Firefox"), "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (
            Device("desktop", "Chrome OS", "Chrome"),
            "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
        ),
        (Device("bot", "Other", "Googlebot"), "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"),
        (Device("other", "Other", "Other"), ""),
        (Device("other", "Other", "Other"), "something else"),
    ],
)
def test_a_user_agent_is_parsed_to_device_operating_system_and_browser(device: Device, agent: str) -> None:
    assert parse_device(agent) == device


@pytest.mark.parametrize(
    ("kind", "agent"),
    [
        ("phone", "Nokia6280/2.0 (03.60) Profile/MIDP-2.0 Configuration/CLDC-1.1"),
        ("phone", "Opera/9.80 (Android; Opera Mini/36.2.2254/191.303; U; en) Presto/2.12.423 Version/12.16 Mobi"),
        (
            "phone",
            "Mozilla/5.0 (Linux; Android 6.0.1; STV100-4) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/56.0 Mobile Safari/537.36",
        ),
        ("other", "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/68.0.3440.106 Safari/537.36"),
        (
            "other",
            "Mozilla/5.0 (Linux; Android 11; Arcelik UHD TV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/90.0 Safari/537.36",
        ),
    ],
)
def test_simple_phones_are_classified_as_phones_and_televisions_as_other(kind: str, agent: str) -> None:
    assert parse_device(agent).kind == kind


@pytest.mark.slow
def test_devices_agree_with_all_expressions_of_ua_parser_for_nearly_all_known_user_agents() -> None:
    """The service loads only a few of ua-parser's expressions for devices. The results must be nearly the same as with all of
    them."""
    agents = sorted({agent[:MAX_AGENT_LENGTH] for sample in samples() for agent in sample.agents})[::10]
    different = []
    for agent in agents:
        known = ua_parser.parse(agent).with_defaults()
        expected = Device(_kind(agent, known.os.family, known.device), known.os.family, known.user_agent.family)
        if parse_device(agent) != expected:
            different.append(agent)
    assert len(agents) > 3000
    assert len(different) <= 2


@pytest.mark.parametrize(
    ("kind", "agent"),
    [
        (
            "phone",
            "Mozilla/5.0 (Linux; Android 6.0; CUBOT NOTE S) AppleWebKit/537.36 Chrome/70.0 Mobile Safari/537.36",
        ),
        (
            "tablet",
            "Mozilla/5.0 (Linux; Android 9; KFTRWI) AppleWebKit/537.36 Silk/134.1.82 like Chrome/134.0 Safari/537.36",
        ),
        (
            "bot",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 8_3) Mobile/12F70 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        ),
        ("bot", "acme-crawler/1.0"),
    ],
)
def test_phones_named_like_crawlers_are_phones_and_crawlers_that_name_a_phone_are_bots(kind: str, agent: str) -> None:
    assert parse_device(agent).kind == kind


@given(st.text())
def test_any_user_agent_is_mapped_to_a_device(agent: str) -> None:
    assert parse_device(agent).kind in ("phone", "tablet", "desktop", "bot", "other")


def test_long_user_agents_with_the_same_first_512_characters_have_one_cache_entry() -> None:
    assert parse_device("x" * 512 + "y" * 100_000) is parse_device("x" * 512 + "z" * 100_000)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("Mobile Safari", "Safari"),
        ("Chrome Mobile iOS", "Chrome"),
        ("Samsung Internet", "Samsung Internet"),
        ("Chrome Mobile WebView", "another app"),
        ("Facebook", "Facebook"),
        ("Netscape", OTHER_BROWSER),
        ("", OTHER_BROWSER),
    ],
)
def test_browser_families_are_mapped_to_a_fixed_list_of_names(family: str, name: str) -> None:
    assert browser_name(family) == name


@given(st.text())
def test_any_user_agent_is_mapped_to_a_short_browser_name(agent: str) -> None:
    assert len(browser_name(parse_device(agent).browser)) < 20
