"""The code in a request path, with the punctuation that phones add to links."""

from __future__ import annotations

import re
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortener.clicks.path import MAX_CODE_LENGTH, MIN_CODE_LENGTH, code_of

CODES = st.text(string.ascii_letters + string.digits, min_size=MIN_CODE_LENGTH, max_size=MAX_CODE_LENGTH)
PUNCTUATION = st.text(".,)!?;:'\"”“’‘»…。", max_size=8)


@given(CODES)
def test_a_plain_code_is_found(code: str) -> None:
    assert code_of(f"/{code}") == code_of(f"/{code}".encode()) == code


@given(CODES, PUNCTUATION)
def test_punctuation_behind_a_code_is_ignored_plain_and_encoded(code: str, punctuation: str) -> None:
    encoded = quote(punctuation, safe="")
    for behind in (punctuation, encoded, encoded.lower(), "".join(f"%{byte:02X}" for byte in punctuation.encode())):
        assert code_of(f"/{code}{behind}") == code
        assert code_of(f"/{code}{behind}".encode()) == code


@pytest.mark.parametrize(
    "path",
    [
        "/Ab3xK9Qr.",
        "/Ab3xK9Qr).",
        "/Ab3xK9Qr%22",
        "/Ab3xK9Qr%27",
        "/Ab3xK9Qr%E2%80%9D",
        "/Ab3xK9Qr%e2%80%99",
        "/Ab3xK9Qr%2E%29",
        "/Ab3xK9Qr”!",
        "/Ab3xK9Qr…",
        "/Ab3xK9Qr。",
        "/Ab3xK9Qr.%22",
    ],
)
def test_punctuation_that_phones_add_to_links_is_ignored(path: str) -> None:
    assert code_of(path) == code_of(path.encode()) == "Ab3xK9Qr"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "Ab3xK9Qr",
        "//Ab3xK9Qr",
        "/Ab3xK9Qr/",
        "/Ab3xK9Qr/x",
        "/abc",
        "/" + "a" * 33,
        "/favicon.ico",
        "/robots.txt",
        "/index.php",
        "/.well-known/x",
        "/Ab3x.K9Qr",
        "/.Ab3xK9Qr",
        "/Ab3xK9Qr%",
        "/Ab3xK9Qr%20",
        "/Ab3xK9Qr%00",
        "/Ab3xK9Qr\x00",
        "/Ab3xK9Qr\n",
        "/Ab3xK9Qr\r\nSet-Cookie:",
        "/Ab3xK9Qr%0d%0a",
        "/Ab3xK9Qr😀",
        "/Ab3xK9Q\u0660",  # an Arabic digit
        "/Ab3x-K9Qr",
        "/Ab3xK9Qr" + "." * 9,
        "/Ab3xK9Qr" + "." * 100_000 + "/",
        "/Ab3xK9Qr\ud800",
    ],
)
def test_other_paths_have_no_code(path: str) -> None:
    assert code_of(path) is None
    assert code_of(path.encode(errors="surrogatepass")) is None


@given(st.binary() | st.text())
def test_any_path_gives_a_valid_code_or_none(path: bytes | str) -> None:
    code = code_of(path)
    assert code is None or re.fullmatch(r"[A-Za-z0-9]{4,32}", code)
