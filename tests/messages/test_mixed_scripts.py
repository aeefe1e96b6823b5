from __future__ import annotations

import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.messages.mixed_scripts import mixed_scripts
from shortener.urls import UrlError, parse_destination
from tests.one_test import in_one_test


def punycode(host: str) -> str:
    return idna.encode(host, uts46=True).decode()


@pytest.mark.parametrize(
    ("host", "scripts"),
    [
        ("аpple.example", ("Cyrillic", "Latin")),
        ("www.pаypal.example", ("Cyrillic", "Latin")),
        ("gοοgle.example", ("Greek", "Latin")),
        ("аβ.example", ("Cyrillic", "Greek")),
        ("яндекc.example", ("Cyrillic", "Latin")),
    ],
)
def test_a_host_name_that_mixes_scripts_is_detected(host: str, scripts: tuple[str, ...]) -> None:
    assert mixed_scripts(punycode(host)) == scripts


@in_one_test
@pytest.mark.parametrize(
    "host",
    [
        "shop.example",
        "münchen.example",
        "пример.рф",
        "пример.example",  # different labels of a host may use different scripts
        "москва-24.example",
        "ελλάδα.example",
        "ドメインー名例abc.example",
        "お名前.example",
        "中文網站.example",
        "한국어abc.example",
        "परीक्षा.example",
        "مثال.example",
        "xn--e1afmkfd.xn--p1ai",
    ],
)
def test_host_names_with_scripts_that_a_language_combines_are_accepted(host: str) -> None:
    assert mixed_scripts(punycode(host)) == ()


@given(st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=12))
def test_the_scripts_of_every_valid_destination_host_can_be_checked(label: str) -> None:
    try:
        host = parse_destination(f"https://{label}.example/").host
    except UrlError:
        return
    scripts = mixed_scripts(host)
    assert not scripts or len(scripts) > 1
