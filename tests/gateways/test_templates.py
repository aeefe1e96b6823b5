"""Tests of gateway request templates: how inserted values are encoded, and how a path finds a value in a response."""

from __future__ import annotations

import json
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import pytest

from shortener.gateways.templates import Escaping, check_path, escaping_of, fill, parse_json, read_path, unknown_placeholders
from tests.one_test import in_one_test

NASTY = 'a&b=c "quoted" \\ {phone} <tag> é😀\r\nX-Injected: 1\t%41+ \' \x00#?/'


def test_a_value_in_the_query_of_a_gateway_url_stays_one_parameter_whatever_it_contains() -> None:
    url = fill("https://gw.example/{text}/send?to={phone}&text={text}&x=1#f", {"text": NASTY, "phone": "+14085550100"}, "url")
    parts = urlsplit(url)
    assert dict(parse_qsl(parts.query)) == {"to": "+14085550100", "text": NASTY, "x": "1"}
    assert url.isascii()
    assert parts.path.count("/") == 2


def test_a_value_in_a_gateway_form_stays_one_parameter_whatever_it_contains() -> None:
    assert dict(parse_qsl(fill("a={text}&b=2", {"text": NASTY}, "form"))) == {"a": NASTY, "b": "2"}


def test_a_value_in_a_gateway_json_body_stays_one_string_whatever_it_contains() -> None:
    assert json.loads(fill('{"a":"{text}","b":{"c":"x {text}"}}', {"text": NASTY}, "json")) == {
        "a": NASTY,
        "b": {"c": f"x {NASTY}"},
    }


def test_a_value_in_a_gateway_xml_body_stays_one_text_whatever_it_contains() -> None:
    document = ElementTree.fromstring(fill('<m to="{text}"><t>{text}</t></m>', {"text": NASTY}, "xml"))
    text = document.findtext("t")
    assert text is not None
    assert text.replace("\n", "") == NASTY.replace("\x00", "\ufffd").replace("\r\n", "")


def test_a_value_in_a_gateway_header_cannot_end_the_header_line() -> None:
    filled = fill("Bearer {text}", {"text": NASTY}, "header")
    assert "\r" not in filled
    assert "\n" not in filled


def test_a_placeholder_inside_an_inserted_value_is_not_replaced() -> None:
    assert fill("{a}{b}", {"a": "{b}", "b": "1"}, "none") == "{b}1"


def test_url_and_form_parameters_whose_placeholder_has_no_value_are_left_out() -> None:
    values = {"a": "", "b": "1"}
    assert fill("https://gw.example/?from={a}&to={b}&fixed=&x={a}", values, "url") == "https://gw.example/?to=1&fixed="
    assert fill("from={a}&to={b}", values, "form") == "to=1"
    assert fill("https://gw.example/?from={a}", values, "url") == "https://gw.example/"


@pytest.mark.parametrize(
    ("content_type", "escaping"),
    [
        ("application/json; charset=utf-8", "json"),
        ("application/vnd.api+json", "json"),
        ("application/x-www-form-urlencoded", "form"),
        ("text/xml", "xml"),
        ("text/plain", "none"),
    ],
)
def test_the_content_type_determines_how_values_in_a_gateway_request_are_encoded(content_type: str, escaping: Escaping) -> None:
    assert escaping_of(content_type) == escaping


def test_unknown_placeholders_in_a_gateway_request_template_are_detected() -> None:
    assert unknown_placeholders('{"a":"{phone}","b":"{nope}"}', {"phone": ""}) == ["nope"]


@in_one_test
@pytest.mark.parametrize(
    ("path", "body", "value"),
    [
        ("$.messages.0.id", b'{"messages":[{"id":"m1"}]}', "m1"),
        ("$.messages.1.id", b'{"messages":[{"id":"m1"}]}', None),
        ("$.id", b'{"id":12345678901234567890}', "12345678901234567890"),
        ("$.cost", b'{"cost":0.10}', "0.10"),
        ("$.ok", b'{"ok":true}', "true"),
        ("$.id", b'{"id":{"a":1}}', None),
        ("$.id", b'{"id":null}', None),
        ("$.a.b", b'{"a":"text"}', None),
        ("$.id", b"not json", None),
        ("$.a|$.b", b'{"b":"second"}', "second"),
        ('Success "{value}"', b'Success "07033084-5cfd"', "07033084-5cfd"),
        ('Success "{value}"', b'Error "No route"', None),
        ('Success "{value}"', b'Success "no end', None),
        ("$.id", b'\xef\xbb\xbf{"id":"7"}', "7"),
        ("$.id", b'{"error":"n\xfamero","id":"7"}', "7"),
        ("$.error", b'{"error":"n\xfamero"}', "n\ufffdmero"),
        ("{value}", b" 3: Queued for later delivery \n", "3: Queued for later delivery"),
        ("ID: {value}", b"ID: \xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_a_path_setting_reads_a_value_from_a_gateway_response(path: str, body: bytes, value: str | None) -> None:
    assert read_path(check_path(path), body, parse_json(body)) == value


def test_a_value_from_a_gateway_response_is_cut_at_500_characters() -> None:
    assert len(read_path("{value}", b"x" * 10_000) or "") == 500


def test_a_gateway_response_of_deeply_nested_json_is_not_parsed() -> None:
    assert parse_json(b"[" * 100_000) is None


@pytest.mark.parametrize("path", ["messages.0.id", "no placeholder", "{value} and {value}"])
def test_a_path_setting_with_invalid_syntax_is_rejected(path: str) -> None:
    with pytest.raises(ValueError, match="must be a path"):
        check_path(path)
