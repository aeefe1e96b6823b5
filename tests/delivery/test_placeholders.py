from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from shortener.delivery.placeholders import (
    MAX_URL_LENGTH,
    OWN_PLACEHOLDERS,
    PLACEHOLDERS,
    TELECOM_PLACEHOLDERS,
    Template,
    TemplateError,
    parse_template,
    placeholder_values,
)
from shortener.errors import ErrorCode
from tests.one_test import in_one_test

NASTY = ["&", "#", "%", "+", "\r\n", "😀", "{phone}", "%7Bphone%7D", "/", "?", "..", "=", "a b", "\\", "\x00", "'\"<>", "é", "@h:1"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def test_the_placeholders_in_the_documented_example_of_23_telecom_are_replaced_as_documented() -> None:
    template = parse_template("https://tracker.example.com/postback?phone={phone}&status={status}&cost={cost}")
    facts = {"to_address": "+14155551234", "report_status": "DELIVRD", "mt_price": "0.0085"}
    expanded = template.expand(placeholder_values(facts))
    assert expanded == "https://tracker.example.com/postback?phone=%2B14155551234&status=DELIVRD&cost=0.0085"


def test_the_names_of_the_placeholders_equal_the_documented_names() -> None:
    telecom = "message_id phone recipient sender_id cost status status_code num_parts timestamp telecom_message_id"
    own = (
        "event_id event click_id conversion_id action value currency transaction_id disposition revision campaign url short_url"
        " label country phone_sha256 message_request_id external_message_request_id timestamp_unix"
    )
    assert tuple(telecom.split()) == TELECOM_PLACEHOLDERS
    assert tuple(own.split()) == OWN_PLACEHOLDERS


@in_one_test
@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_placeholder_values_are_encoded_and_cannot_change_the_structure_of_the_url(name: str) -> None:
    template = parse_template(f"https://t.example:8443/in/{{{name}}}/end?a=1&v={{{name}}}&b=2")
    assert template.placeholders == (name,)
    for value in NASTY:
        url = template.expand({name: value})
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "t.example:8443", "")
        assert [unquote(segment) for segment in parts.path.split("/")] == ["", "in", value, "end"]
        assert parse_qsl(parts.query, keep_blank_values=True) == [("a", "1"), ("v", value), ("b", "2")]
        assert f"v={quote(value, safe='')}&" in url


@given(st.dictionaries(st.sampled_from(PLACEHOLDERS), TEXT))
def test_placeholder_values_are_inserted_once_and_decode_to_the_same_text(values: dict[str, str]) -> None:
    template = parse_template("http://t.example/cb?" + "&".join(f"{name}={{{name}}}" for name in PLACEHOLDERS))
    url = template.expand(values)
    assert re.fullmatch(r"[A-Za-z0-9:/?&=%._~-]+", url)
    assert str(URL(url, encoded=True)) == url
    assert dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)) == {name: values.get(name, "") for name in PLACEHOLDERS}


def test_a_url_parameter_is_empty_if_the_value_of_its_placeholder_is_missing() -> None:
    assert parse_template("http://t.example/?a={phone}&b={value}").expand({"value": ""}) == "http://t.example/?a=&b="


def test_a_lone_surrogate_in_a_placeholder_value_is_replaced() -> None:
    assert parse_template("http://t.example/?a={label}").expand({"label": "\ud83d"}) == "http://t.example/?a=%3F"


@in_one_test
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{phone}}", "phone"),
        ("{{ phone }}", "phone"),
        ("{{{phone}}}", "phone"),
        ("{ phone }", "phone"),
        ("{Phone}", "phone"),
        ("{PHONE}", "phone"),
        ("{_phone}", "phone"),
        ("{!phone}", "phone"),
        ("{phone:raw}", "phone"),
        ("{phone|raw}", "phone"),
        ("{phone:lead=0 sale=1}", "phone"),
        ("{messageId}", "message_id"),
        ("{message-id}", "message_id"),
        ("{clickid}", "click_id"),
        ("{msisdn}", "phone"),
        ("{payout}", "value"),
        ("{txn_id}", "transaction_id"),
        ("{transaction_ids}", "transaction_id"),
        ("${phone}", "phone"),
        ("#{phone}", "phone"),
        ("%7Bphone%7D", "phone"),
        ("%7bPhone%7d", "phone"),
        ("%7B%7Bphone%7D%7D", "phone"),
        ("%257Bphone%257D", "phone"),
        ("$%7Bphone%7D", "phone"),
        ("[phone]", "phone"),
        ("[PHONE]", "phone"),
        ("[[phone]]", "phone"),
        ("%5Bphone%5D", "phone"),
        ("+1[phone]", "phone"),
        ("(phone)", "phone"),
        ("(click_id)", "click_id"),
        ("<phone>", "phone"),
        ("%phone%", "phone"),
        ("%3CPhone%3E", "phone"),
        ("%25phone%25", "phone"),
        ("%23phone%23", "phone"),
        ("||phone||", "phone"),
        ("%7c%7cphone%7c%7c", "phone"),
        ("%PHONE%", "phone"),
        ("%%PHONE%%", "phone"),
        ("%CAMPAIGN%", "campaign"),
        ("__PHONE__", "phone"),
        ("__CLICK_ID__", "click_id"),
        ("{phone}}", "phone"),
    ],
)
def test_placeholders_in_the_syntax_of_other_systems_are_rejected_with_a_hint(text: str, name: str) -> None:
    for url in ("https://t.example/cb?p=$&q={status}", "https://t.example/cb/$/x", "https://t.example/cb?p=$"):
        with pytest.raises(TemplateError) as caught:
            parse_template(url.replace("$", text, 1))
        assert caught.value.code is ErrorCode.UNKNOWN_PLACEHOLDER
        assert f"write {{{name}}}" in caught.value.reason
        assert abs(caught.value.position - url.index("$")) <= 2


def test_the_error_of_a_tracker_url_names_each_unknown_placeholder_in_the_order_of_the_url() -> None:
    url = "https://t.example/[phone]?a={payout}&b={{status}}&c={click_id}&d={foo}"
    with pytest.raises(TemplateError) as caught:
        parse_template(url)
    errors = (caught.value, *caught.value.further)
    assert [error.position for error in errors] == [url.index(text) for text in ("[phone]", "{payout}", "{{status}}", "{foo}")]
    assert "write {value}" in errors[1].reason


@in_one_test
@pytest.mark.parametrize(
    "text", ["{foo}", "{foo_bar:x}", "{{foo}}", "${foo}", "{1}", "{}", "{", "}", "{phone", "phone}", '{"a":1}', "{a b}"]
)
def test_unknown_placeholders_and_single_braces_in_tracker_urls_are_rejected(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(f"https://t.example/cb?p={text}&q={{phone}}")
    assert caught.value.code is ErrorCode.UNKNOWN_PLACEHOLDER


@in_one_test
@pytest.mark.parametrize(
    "url",
    [
        "https://t.example",
        "https://t.example/cb?user[phone]={phone}&user[tags][]=a",
        "https://t.example/cb?user%5Bphone%5D={phone}",
        "https://t.example/cb?data[user][phone]={phone}",
        "https://t.example/cb?x=[a]&y=[1,2]&z=[msisdn]",
        "https://t.example/cb?f=count(value)&g=(x)&h=foo_(value)",
        "https://t.example/Users(phone)/x",
        "https://t.example/cb?q=%7B%22phone%22%3A%22{phone}%22%7D",
        "https://t.example/cb?q=%7B%22value%22%3A{value}%7D",
        "https://t.example/cb?q=%7Bfoo%7D",
        "https://t.example/cb?q=100%25&r=%CAMPAIGN%20x&s=%C3%A9",
        "https://t.example/cb?q=phone&r=PHONE&s=$phone&t=:phone",
        "https://t.example/a__b__c/__init__/x",
        "https://t.example/@{campaign}/;v=1/~x/!$&'()*+,;=:@",
        "https://t.example/?a={phone}{phone}&{label}={value}",
        "https://[2606:4700::1111]:8443/x?y=[::1]",
        "https://under_score.example/x",
        "https://T.Example./x",
        "https://xn--e1afmkfd.xn--p1ai/x",
        "http://8.8.8.8:8080/?x",
        "https://t.example//double//slashes/../x?a?b/c",
    ],
)
def test_valid_tracker_urls_are_accepted_unchanged(url: str) -> None:
    template = parse_template(url)
    values = dict.fromkeys(PLACEHOLDERS, "1")
    after_host = re.sub(r"\{\w+\}", "1", re.sub(r"^https?://[^/?]*", "", url))
    assert template.expand(values).endswith(after_host)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port"),
    [
        ("HTTP://T.Example", "http", "t.example", 80),
        ("https://t.example:443/x", "https", "t.example", 443),
        ("https://t.example:8443/x", "https", "t.example", 8443),
        ("http://[::FFFF:1.2.3.4]/x", "http", "::ffff:102:304", 80),
        ("https://bücher.example/x", "https", "xn--bcher-kva.example", 443),
        ("http://localhost./x", "http", "localhost.", 80),
    ],
)
def test_the_scheme_host_and_port_of_a_tracker_url_with_placeholders_are_parsed(
    url: str, scheme: str, host: str, port: int
) -> None:
    template = parse_template(url)
    assert (template.scheme, template.host, template.port) == (scheme, host, port)
    sent = URL(template.expand({}), encoded=True)
    assert (sent.scheme, sent.raw_host, sent.port) == (scheme, host, port)


def test_characters_that_a_url_cannot_contain_are_percent_encoded() -> None:
    assert parse_template('https://t.example/ж?a=|"^`{label}').expand({}) == "https://t.example/%D0%B6?a=%7C%22%5E%60"


@in_one_test
@pytest.mark.parametrize(
    ("url", "position"),
    [
        ("", 0),
        ("t.example/x", 0),
        ("//t.example/x", 0),
        ("https:t.example", 0),
        ("https:/t.example", 0),
        ("ftp://t.example/", 0),
        ("javascript:alert(1)", 0),
        (" https://t.example/", 0),
        ("https://", 8),
        ("https:///x", 8),
        ("https://?x", 8),
        ("{phone}://t.example/", 0),
        ("http{status}://t.example/", 4),
        ("https://{phone}.example/", 8),
        ("https://t.{country}/", 10),
        ("https://t.example:{value}/", 18),
        ("https://%7Bphone%7D.example/", 8),
        ("https://user@t.example/", 8),
        ("https://user:pass@t.example/", 8),
        ("https://good.example\\@evil.example/", 20),
        ("https://t.example/a\\b", 19),
        ("https://t.exa\tmple/", 13),
        ("https://t.example/\r\nX-A: b", 18),
        ("https://t.example/\x00", 18),
        ("https://t.example/\x7f", 18),
        ("https://t.example/\x85", 18),
        ("https://t.example/a b", 19),
        ("https://t.example/a\u3000b", 19),
        ("https://t.example:/", 18),
        ("https://t.example:0/", 18),
        ("https://t.example:65536/", 18),
        ("https://t.example:99999/", 18),
        ("https://t.example:8x/", 18),
        ("https://t.example:+80/", 18),
        ("https://t.example:٨٠/", 18),
        ("https://[::1/", 8),
        ("https://[::1]x/", 8),
        ("https://[fe80::1%25eth0]/", 8),
        ("https://[1.2.3.4]/", 8),
        ("https://::1/", 8),
        ("https://a..b/", 8),
        ("https://-a.example/", 8),
        ("https://a%41.example/", 8),
        ("https://a b.example/", 8),
        ("https://" + "a" * 64 + ".example/", 8),
        ("https://" + "a." * 130 + "example/", 8),
        ("https://ex\u200bample\u2024\u2024com/", 8),
        ("https://1.2.3.256/", 8),
        ("https://t.example.123abc.9x9.99999999999/", 8),
        ("https://t.example/x#top", 19),
        ("https://t.example/x?a=100%", 25),
        ("https://t.example/x?a=%4{value}", 22),
        ("https://t.example/x?a=%zz", 22),
        ("https://t.example/\ud83d", 18),
        ("http://[2606:4700::1111]./", 7),
        ("https://t.example/" + "x" * MAX_URL_LENGTH, MAX_URL_LENGTH),
    ],
)
def test_an_invalid_tracker_url_is_rejected_with_the_position_of_the_error(url: str, position: int) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(url)
    assert caught.value.code is ErrorCode.INVALID_TRACKER_URL
    assert caught.value.position == position
    assert caught.value.reason


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001", "134744072", "0"])
def test_tracker_urls_with_ipv4_addresses_in_unusual_notation_are_rejected(host: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(f"http://{host}/")
    assert caught.value.code is ErrorCode.FORBIDDEN_TARGET


PIECES = ["https://", "t.example", "/", "?", "#", "{", "}", "phone", "%7B", "[", "]", "(", ")", "%", "@", ":", "\\", "é", " "]


def accepted(text: str) -> Template | None:
    try:
        return parse_template(text)
    except TemplateError:
        return None


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join))
def test_other_url_parsers_find_the_same_host_and_port_in_any_accepted_tracker_url(text: str) -> None:
    if (template := accepted("https://" + text)) is None:
        return
    url = template.expand(dict.fromkeys(PLACEHOLDERS, "v"))
    assert url.isascii()
    assert not re.search(r"[\s{}\\#]", url)
    parts = urlsplit(url)
    sent = URL(url, encoded=True)
    assert parts.hostname == sent.raw_host == template.host
    assert (parts.port or 443) == sent.port == template.port
    assert parts.username is None
    assert parse_template(url).expand({}) == url


# The tests below check the values that replace placeholders.


def test_placeholder_values_come_from_the_fields_of_an_event() -> None:
    facts = {
        "topic": "conversion",
        "event_id": "evt_1",
        "message_id": "m1",
        "to_address": "+14085550100",
        "sender_id_alias": "Gladiator",
        "from_address": "18775550100",
        "sender_id_id": "Ejih",
        "mt_price": "0.0095",
        "conversion_status": "approved",
        "report_status": "DELIVRD",
        "reason_code": "200",
        "fragments_count": 2,
        "timestamp": "2026-11-20T12:00:00.000Z",
        "telecom_message_id": "t1",
        "value": "-19.90",
        "label": None,
    }
    values = placeholder_values(facts)
    assert set(values) == set(PLACEHOLDERS)
    assert {name: value for name, value in values.items() if value} == {
        "event_id": "evt_1",
        "event": "conversion",
        "message_id": "m1",
        "phone": "+14085550100",
        "recipient": "+14085550100",
        "sender_id": "18775550100",
        "cost": "0.0095",
        "status": "approved",
        "status_code": "200",
        "num_parts": "2",
        "timestamp": "2026-11-20T12:00:00.000Z",
        "timestamp_unix": "1795176000",
        "telecom_message_id": "t1",
        "value": "-19.90",
    }


def test_every_placeholder_value_is_empty_if_an_event_has_no_data() -> None:
    assert set(placeholder_values({}).values()) == {""}


@in_one_test
@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"topic": "state", "new_state": "DELIVERED", "report_status": "DELIVRD"}, "DELIVERED"),
        ({"topic": "delivery", "new_state": "DELIVERED"}, "DELIVRD"),
        ({"topic": "state", "new_state": "SENT", "report_status": "DELIVRD"}, "SENT"),
        ({"topic": "delivery", "new_state": "SENT"}, "ENROUTE"),
        ({"topic": "state", "new_state": "CREATED", "report_status": "DELIVRD"}, "CREATED"),
        ({"topic": "delivery", "new_state": "CREATED"}, "ACCEPTD"),
        ({"topic": "state", "new_state": "FAILED", "report_status": "DELIVRD"}, "FAILED"),
        ({"topic": "delivery", "new_state": "FAILED"}, "UNDELIV"),
        ({"topic": "state", "new_state": "EXPIRED"}, "EXPIRED"),
        ({"topic": "state", "new_state": "READ"}, "READ"),
        ({"topic": "state", "new_state": "CLICKTHRU", "report_status": "DELIVRD"}, "CLICKTHRU"),
        ({"topic": "test", "sample_of": "state", "new_state": "CLICKTHRU", "report_status": "DELIVRD"}, "CLICKTHRU"),
        ({"topic": "delivery", "new_state": "FAILED", "report_status": "REJECTD"}, "REJECTD"),
        ({"topic": "conversion", "conversion_status": "lead", "report_status": "DELIVRD"}, "lead"),
        ({"topic": "conversion", "report_status": "DELIVRD"}, "DELIVRD"),
        ({"topic": "click", "conversion_status": "lead", "new_state": "DELIVERED"}, "DELIVRD"),
    ],
)
def test_the_placeholder_status_is_the_new_state_of_a_state_event_and_the_reported_status_of_other_events(
    facts: dict[str, str], word: str
) -> None:
    assert placeholder_values(facts)["status"] == word


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"sender_id_alias": "Gladiator", "from_address": "1", "sender_id_id": "E"}, "1"),
        ({"sender_id_alias": "Gladiator", "from_address": "channel:7"}, "Gladiator"),
        ({"sender_id_alias": "Gladiator", "from_address": "sender_id:7"}, "Gladiator"),
        ({"sender_id_alias": "Gladiator", "from_address": ""}, "Gladiator"),
        ({"from_address": "channel:7", "sender_id_id": "E"}, "channel:7"),
        ({"sender_id_alias": "", "from_address": "1", "sender_id_id": "E"}, "1"),
        ({"sender_id_id": "E"}, "E"),
    ],
)
def test_the_placeholder_sender_id_is_the_from_address_unless_this_address_is_absent_or_refers_to_a_sender(
    facts: dict[str, str], shown: str
) -> None:
    assert placeholder_values(facts)["sender_id"] == shown


METADATA_FACTS = {"metadata": {"sub1": "a b", "n.1": 7, "yes": True, "none": None}}


@pytest.mark.parametrize(("name", "value"), [("sub1", "a%20b"), ("n.1", "7"), ("yes", "true"), ("none", ""), ("absent", "")])
def test_each_metadata_value_of_a_message_can_be_used_as_a_placeholder(name: str, value: str) -> None:
    template = parse_template(f"http://t.example/cb?x={{metadata.{name}}}")
    assert template.expand(placeholder_values(METADATA_FACTS)) == f"http://t.example/cb?x={value}"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{metadata}", "{metadata.NAME}"),
        ("{metadata.}", "{metadata.NAME}"),
        ("{{metadata.sub1}}", "{metadata.sub1}"),
        ("{Metadata.Sub1}", "{metadata.Sub1}"),
        ("[metadata.sub1]", "{metadata.sub1}"),
        ("%7Bmetadata.sub1%7D", "{metadata.sub1}"),
    ],
)
def test_metadata_placeholders_in_a_wrong_notation_are_rejected_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(TemplateError) as raised:
        parse_template(f"http://t.example/cb?x={text}")
    assert raised.value.code is ErrorCode.UNKNOWN_PLACEHOLDER
    assert f"write {hint}" in raised.value.reason


@pytest.mark.parametrize(
    ("url", "values", "path"),
    [
        ("/hooks/{campaign}/x", {"campaign": ".."}, "/hooks/%2E%2E/x"),
        ("/hooks/{campaign}/x", {"campaign": "."}, "/hooks/%2E/x"),
        ("/hooks/{action}{label}", {"action": ".", "label": "."}, "/hooks/%2E%2E"),
        ("/hooks/.{action}?x={action}", {"action": "."}, "/hooks/%2E%2E?x=."),
        ("/hooks/%2e{campaign}/x", {"campaign": "."}, "/hooks/%2E%2E/x"),
        ("/hooks/{campaign}%2E/x", {"campaign": "."}, "/hooks/%2E%2E/x"),
        ("/a/../hooks/{campaign}/x", {"campaign": ".."}, "/a/../hooks/%2E%2E/x"),
        ("/a/%2e%2e/hooks/{campaign}/x", {"campaign": "1"}, "/a/%2e%2e/hooks/1/x"),
        ("/hooks/{campaign}/x", {"campaign": "..."}, "/hooks/.../x"),
        ("/hooks/a{campaign}/x", {"campaign": ".."}, "/hooks/a../x"),
        ("/hooks?x={campaign}", {"campaign": "/../"}, "/hooks?x=%2F..%2F"),
    ],
)
def test_a_placeholder_value_of_dots_does_not_change_the_path_of_the_url(url: str, values: dict[str, str], path: str) -> None:
    assert parse_template(f"http://t.example{url}").expand(values) == f"http://t.example{path}"


def test_the_placeholder_for_the_unix_timestamp_is_the_time_of_the_event_in_seconds() -> None:
    assert placeholder_values({"timestamp": "2026-11-20T12:00:00.999Z"})["timestamp_unix"] == "1795176000"
