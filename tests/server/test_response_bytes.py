"""Tests of the bytes of redirect responses. test_http_protocol_responses.py compares them with those of uvicorn."""

from functools import partial

import pytest

from shortener.clicks.redirect import REDIRECT_HEADERS
from shortener.server.response_bytes import serialize_response
from tests.one_test import in_one_test

serialize = partial(serialize_response, request_id=b"7")


@in_one_test
@pytest.mark.parametrize("control", [chr(number) for number in (*range(9), *range(10, 32), 127)])
def test_a_control_character_in_a_response_header_raises_value_error(control: str) -> None:
    location = f"https://x.example/{control}".encode()
    for keep_alive in (True, False):
        with pytest.raises(ValueError, match="control character"):
            serialize((302, [*REDIRECT_HEADERS, (b"location", location)], b""), [], is_head=False, keep_alive=keep_alive)
    with pytest.raises(ValueError, match="control character"):
        serialize((410, [(b"x", location), (b"content-length", b"0")], b""), [], is_head=False, keep_alive=True)


def test_a_response_contains_the_current_date_header() -> None:
    response = (302, [*REDIRECT_HEADERS, (b"location", b"https://x.example/")], b"")
    friday, saturday = ([(b"date", day), (b"x-more", b"1")] for day in (b"Fri", b"Sat"))
    on_friday = serialize(response, friday, is_head=False, keep_alive=True)
    assert b"date: Fri" in on_friday
    assert serialize(response, saturday, is_head=False, keep_alive=True) == on_friday.replace(b"Fri", b"Sat")


def test_a_response_that_ends_the_connection_has_a_connection_header() -> None:
    response = (302, [*REDIRECT_HEADERS, (b"location", b"https://x.example/")], b"")
    closing = serialize(response, [], is_head=False, keep_alive=False)
    assert closing == serialize(response, [], is_head=False, keep_alive=True).replace(
        b"\r\nx-request-id: 7\r\n\r\n", b"\r\nx-request-id: 7\r\nconnection: close\r\n\r\n"
    )


def test_a_response_to_a_head_request_has_no_body() -> None:
    response = (404, [(b"content-length", b"4")], b"page")
    assert serialize(response, [], is_head=False, keep_alive=True).endswith(b"\r\n\r\npage")
    assert serialize(response, [], is_head=True, keep_alive=True).endswith(b"\r\n\r\n")
