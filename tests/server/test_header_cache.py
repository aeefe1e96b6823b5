"""The memory of headers: what is in it, and that it has bounds."""

import pytest

from shortener.clicks.redirect import ClientInfo, read_client_info
from shortener.server.header_cache import LONGEST_HEADERS, MOST, Heads

HEADERS = b"Host: s.example\r\nUser-Agent: Phone\r\n%s\r\n"


def client_info(forwarded: str = "") -> ClientInfo:
    headers = [(b"host", b"s.example"), (b"user-agent", b"Phone")]
    return read_client_info("GET", [*headers, *([(b"x-forwarded-for", forwarded.encode())] if forwarded else [])])


def question(more: bytes = b"", path: bytes = b"/8kVnq2LmRd") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HEADERS % more


@pytest.fixture
def heads() -> Heads:
    return Heads()


def test_equal_headers_are_known_whatever_the_code(heads: Heads) -> None:
    assert heads.recall(question()) is None
    heads.get_or_set(question(), client_info())
    assert heads.recall(question()) == ("8kVnq2LmRd", client_info())
    assert heads.recall(question(path=b"/abcd")) == ("abcd", client_info())
    assert heads.recall(question(b"Accept: */*\r\n")) is None


@pytest.mark.parametrize(
    "data",
    [
        question(path=b"/abc"),
        question(path=b"/" + b"a" * 33),
        question(path=b"/8kVnq2LmRd."),
        question(path=b"/8kVnq2LmRd?x=1"),
        question().replace(b"GET", b"HEAD"),
        question().replace(b"GET ", b"GET  "),
        question().replace(b"HTTP/1.1", b"HTTP/1.0"),
        question()[1:],
        question()[:-1],
        question() + b"\r\n",
        question() + question(),
        b"\r\n" + question(),
        question().replace(b"\r\n", b"\n"),
    ],
)
def test_anything_but_a_whole_question_is_for_the_parser(heads: Heads, data: bytes) -> None:
    heads.get_or_set(question(), client_info())
    assert heads.recall(data) is None
    heads.get_or_set(data, client_info())
    assert len(heads) == 1


def test_addresses_of_a_proxy_are_read_anew(heads: Heads) -> None:
    heads.get_or_set(question(b"X-Forwarded-For: 203.0.113.7\r\n"), client_info("203.0.113.7"))
    for address in ("203.0.113.7", "2001:db8::1", "198.51.100.9, 203.0.113.7"):
        assert heads.recall(question(b"X-Forwarded-For: %s\r\n" % address.encode())) == ("8kVnq2LmRd", client_info(address))
    for header in (b"x-forwarded-for: 1.2.3.4", b"X-Forwarded-For:1.2.3.4", b"X-Forwarded-For: me", b"X-Forwarded-For: 1.2.3.4 "):
        assert heads.recall(question(header + b"\r\n")) is None


def test_addresses_that_were_read_in_another_way_are_not_kept(heads: Heads) -> None:
    twice = b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 198.51.100.9\r\n"
    heads.get_or_set(question(twice), client_info("203.0.113.7, 198.51.100.9"))
    heads.get_or_set(question(b"X-Forwarded-For: unknown\r\n"), client_info("unknown"))
    assert len(heads) == 0


def test_the_memory_has_bounds(heads: Heads) -> None:
    for number in range(MOST + 10):
        heads.get_or_set(question(b"X-Request-Id: %d\r\n" % number), client_info())
        assert len(heads) <= MOST
    heads.get_or_set(question(b"X: " + b"x" * LONGEST_HEADERS + b"\r\n"), client_info())
    assert len(heads) == 10
