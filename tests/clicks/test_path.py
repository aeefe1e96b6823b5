"""Tests of request paths: the code in the path, the characters that programs add to links, and the path before the code."""

from __future__ import annotations

import re
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.clicks.path import MAX_CODE_LENGTH, MIN_CODE_LENGTH, code_behind_prefix, code_of
from tests.one_test import in_one_test

CODES = st.text(string.ascii_letters + string.digits, min_size=MIN_CODE_LENGTH, max_size=MAX_CODE_LENGTH)
#: Text that may follow a code: it has no letters and no digits. UTF-8 cannot encode surrogates, so they are also left out.
IGNORED = st.text(st.characters(exclude_categories=("L", "N", "Cs")), max_size=12)
LETTERS_AND_DIGITS = st.characters(categories=("L", "N"), exclude_characters="\u2139\u115f\u1160\u3164\uffa0")


@given(CODES)
def test_a_request_path_that_contains_only_a_link_code_is_parsed_to_this_code(code: str) -> None:
    assert code_of(f"/{code}") == code_of(f"/{code}".encode()) == code


def begins_like_keycap(text: str) -> bool:
    return text.removeprefix("\ufe0f").startswith("\u20e3")


@given(CODES, IGNORED.filter(lambda behind: not begins_like_keycap(behind)))
def test_all_characters_except_letters_and_digits_are_ignored_behind_a_code(code: str, behind: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in behind.encode())
    for form in (quote(behind, safe=""), encoded, encoded.lower(), encoded + "/", *([behind] if "%" not in behind else [])):
        assert code_of(f"/{code}{form}") == code
        assert code_of(f"/{code}{form}".encode()) == code


@given(CODES, IGNORED, LETTERS_AND_DIGITS, IGNORED.filter(lambda after: not begins_like_keycap(after)))
def test_a_letter_or_digit_of_any_script_behind_a_code_is_not_ignored(code: str, before: str, character: str, after: str) -> None:
    behind = before + character + after
    assert code_of(f"/{code}{quote(behind, safe='')}") != code
    if "%" not in behind:
        assert code_of(f"/{code}{behind}") != code


@in_one_test
@pytest.mark.parametrize(
    "behind",
    [
        "/",
        ".",
        ")",
        "%22",
        "%E2%80%9D",
        "%e2%80%99",
        "%2E%29",
        "”!",
        "…",
        "。",
        ".%22",
        "】",
        "、",
        "؟",
        "،",
        "۔",
        "।",
        "👍",
        "👍🏽",
        "❤️",
        "ℹ️",
        " ℹ",
        "1️⃣",
        "0\u20e3",
        "1️⃣0️⃣👍",
        " 2️⃣",
        "#️⃣",
        "\u3164",
        "\u115f\u1160\uffa0",
        "—",
        "_",
        "~",
        "+",
        "=",
        "&",
        "#",
        "?",
        "%",
    ],
)
def test_characters_that_programs_add_to_links_are_ignored_behind_a_code(behind: str) -> None:
    for path in (f"/Ab3xK9Qr{behind}", f"/Ab3xK9Qr{quote(behind, safe='%')}"):
        assert code_of(path) == code_of(path.encode()) == "Ab3xK9Qr"
        assert code_behind_prefix(f"/ABCDEF{path}") == ("/ABCDEF", "Ab3xK9Qr")


@in_one_test
@pytest.mark.parametrize(
    "behind",
    [
        *("%E2%80%8B", "%E2%80%8F", "%EF%BB%BF", "%C2%A0", "%20", "%D8%8C", "%E0%A5%A4", "%F0%9F%91%8D", "%E2%80%94", "/?", "//"),
        *("%F0%9F", "%ED%A0%BD", "%0d%0a", "%00", "." * 100_000),
    ],
)
def test_invisible_and_incomplete_characters_are_ignored_behind_a_code(behind: str) -> None:
    assert code_of(f"/Ab3xK9Qr{behind}") == "Ab3xK9Qr"


@in_one_test
@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "Ab3xK9Qr",
        "//Ab3xK9Qr",
        "/Ab3xK9Qr/x",
        "/Ab3xK9Qr/index.html",
        "/Ab3xK9Qr.html",
        "/Ab3xK9Qr%61",
        "/Ab3xK9Qr%2561",
        "/Ab3xK9Qr.1\ufe0f",
        "/Ab3xK9Qr\u24601",
        "/Ab3xK9Qr.ℹ1",
        "/abc",
        "/" + "a" * 33,
        "/favicon.ico",
        "/robots.txt",
        "/index.php",
        "/.well-known/x",
        "/Ab3x.K9Qr",
        "/.Ab3xK9Qr",
        "/Ab3xK9Qr?x=1",
        "/Ab3xK9Qr\r\nSet-Cookie:",
        "/Ab3xK9Q\u0660",  # an Arabic digit
        "/Ab3xK9Qrа",  # a Cyrillic letter
        "/Ab3x-K9Qr",
        "/Ab3xK9Qr" + "." * 100_000 + "x",
    ],
)
def test_a_path_that_does_not_have_the_form_of_a_short_link_contains_no_code(path: str) -> None:
    assert code_of(path) is None
    assert code_of(path.encode(errors="surrogatepass")) is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/ABCDEF/Ab3xK9Qr", ("/ABCDEF", "Ab3xK9Qr")),
        ("/s/VM-ABCDEF/Ab3xK9Qr/", ("/s/VM-ABCDEF", "Ab3xK9Qr")),
        ("/ABCDEF/Ab3xK9Qr%E2%80%8B", ("/ABCDEF", "Ab3xK9Qr")),
        ("/ABCDEF/Ab3xK9Qr/abcd", ("/ABCDEF/Ab3xK9Qr", "abcd")),
        ("/Ab3xK9Qr", None),
        ("/ABCDEF/Ab3", None),
        ("/ABCDEF/Ab3xK9Qr.html", None),
        ("//Ab3xK9Qr", None),
        ("/../Ab3xK9Qr", None),
        ("/a b/Ab3xK9Qr", None),
        ("/" + "a/" * 100 + "Ab3xK9Qr", None),
    ],
)
def test_a_path_with_a_prefix_contains_a_code_only_in_its_last_segment(path: str, found: tuple[str, str] | None) -> None:
    assert code_behind_prefix(path) == code_behind_prefix(path.encode()) == found


#: Texts that are often valid paths of short links.
NEAR_PATHS = st.lists(
    st.sampled_from(["/", "Ab3xK9Qr", "abcd", "%E2%80%8B", "%41", "\u200b", "\ud800", *"%.-_?#)\0 a9"]), min_size=1, max_size=5
).map(lambda pieces: "/" + "".join(pieces))


@given(NEAR_PATHS | NEAR_PATHS.map(lambda path: path.encode(errors="surrogatepass")) | st.binary() | st.text())
def test_parsing_any_request_path_returns_a_valid_link_code_or_none(path: bytes | str) -> None:
    code = code_of(path)
    assert code is None or re.fullmatch(r"[A-Za-z0-9]{4,32}", code)
