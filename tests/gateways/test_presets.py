"""Tests of the gateway presets: each one builds valid requests, and parses the responses and reports of its gateway."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from shortener.delivery.http_exchange import OutgoingRequest, SendResult
from shortener.gateways.http import HttpSettings, build_request, classify
from shortener.gateways.presets import PRESETS, PresetError, build_settings, read_options
from shortener.gateways.report_calls import read_reports
from shortener.gateways.submission import OutgoingMessage, SubmitOutcome
from tests.conftest import NOON

OPTIONS: dict[str, dict[str, str]] = {
    "kannel": {"username": "u", "password": "p"},
    "jasmin": {"username": "u", "password": "p"},
    "playsms": {"url": "https://play.example/index.php", "username": "u", "token": "t"},
    "twilio": {"account_sid": "AC1", "auth_token": "secret"},
    "infobip": {"url": "https://x.api.infobip.com", "api_key": "key"},
    "vonage": {"api_key": "k", "api_secret": "s"},
    "plain": {"url": "https://gw.example/send", "token": "t"},
}
REPORT_URL = "https://go.example/api/v1/gateways/reports/gr_key/0abc"


def settings(preset: str) -> HttpSettings:
    return HttpSettings(**build_settings(preset, OPTIONS[preset]))


def request(preset: str, text: str = "Hi & bye", encoding: str = "GSM-7", sender: str = "Brand") -> OutgoingRequest:
    message = OutgoingMessage("0abc", "m-1", "+14085550100", text, sender, encoding, 1, REPORT_URL)
    return build_request(settings(preset), message, repeats=True)


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def form(sent: OutgoingRequest) -> dict[str, str]:
    return dict(parse_qsl((sent.body or b"").decode()))


def test_every_gateway_preset_has_complete_settings() -> None:
    assert set(OPTIONS) == set(PRESETS)
    for name in PRESETS:
        settings(name)


@pytest.mark.parametrize(
    ("preset", "further"),
    [*((name, {}) for name in OPTIONS), ("kannel", {"smsc": "x"}), ("twilio", {"api_key": "SK1", "messaging_service_sid": "MG1"})],
)
def test_the_options_of_a_gateway_preset_are_read_from_its_settings(preset: str, further: dict[str, str]) -> None:
    built = build_settings(preset, {**OPTIONS[preset], **further})
    found = read_options(preset, built)
    assert {**found, **OPTIONS[preset], **further} == found
    assert build_settings(preset, found) == built


def test_the_kannel_preset_sends_a_report_url_with_unchanged_placeholders_of_kannel() -> None:
    sent = request("kannel")
    assert sent.method == "GET"
    assert sent.url.startswith("http://127.0.0.1:13013/cgi-bin/sendsms?")
    assert query(sent.url) == {
        "username": "u",
        "password": "p",
        "from": "Brand",
        "to": "+14085550100",
        "text": "Hi & bye",
        "coding": "0",
        "charset": "UTF-8",
        "dlr-mask": "31",
        "dlr-url": f"{REPORT_URL}?status=%d&answer=%A&time=%T",
    }
    assert query(request("kannel", "Привет", "UCS-2", "").url)["coding"] == "2"
    assert "from" not in query(request("kannel", sender="").url)


def test_the_jasmin_preset_sends_the_text_as_hexadecimal_bytes() -> None:
    assert form(request("jasmin"))["hex-content"] == "4869202620627965"
    unicode = form(request("jasmin", "Привет", "UCS-2"))
    assert (unicode["hex-content"], unicode["coding"]) == ("041f04400438043204350442", "8")


def test_the_twilio_preset_sends_a_form_with_basic_credentials() -> None:
    sent = request("twilio")
    assert sent.url == "https://api.twilio.com/2010-04-01/Accounts/AC1/Messages.json"
    assert sent.headers["Authorization"] == "Basic QUMxOnNlY3JldA=="
    assert form(sent) == {"To": "+14085550100", "From": "Brand", "Body": "Hi & bye", "StatusCallback": REPORT_URL}


def test_the_infobip_preset_sends_json_with_the_reference_as_message_id() -> None:
    sent = request("infobip", 'say "hi"\n')
    assert sent.headers["Authorization"] == "App key"
    [message] = json.loads(sent.body or b"")["messages"]
    assert message["destinations"] == [{"to": "14085550100", "messageId": "0abc"}]
    assert message["content"] == {"text": 'say "hi"\n'}
    assert message["webhooks"]["delivery"]["url"] == REPORT_URL


def test_the_vonage_preset_sends_the_type_of_the_text() -> None:
    assert form(request("vonage"))["type"] == "text"
    assert form(request("vonage", "Привет", "UCS-2"))["type"] == "unicode"


def test_the_plain_preset_sends_an_idempotency_key() -> None:
    sent = request("plain")
    assert sent.headers["Idempotency-Key"] == "0abc"
    assert json.loads(sent.body or b"")["report_url"] == REPORT_URL


ACCEPTED, REJECTED, RETRY, UNREADABLE = (
    SubmitOutcome.ACCEPTED,
    SubmitOutcome.REJECTED,
    SubmitOutcome.RETRY,
    SubmitOutcome.UNREADABLE,
)


@pytest.mark.parametrize(
    ("preset", "status", "body", "outcome", "gateway_id", "detail"),
    [
        ("kannel", 202, "0: Accepted for delivery", ACCEPTED, None, "0: Accepted for delivery"),
        ("kannel", 403, "Authorization failed for sendsms", RETRY, None, "Authorization failed for sendsms"),
        ("kannel", 503, "Temporal failure, try again later.", RETRY, None, "Temporal failure, try again later."),
        ("kannel", 400, "Empty text or UDH provided", REJECTED, None, "Empty text or UDH provided"),
        ("jasmin", 200, 'Success "07033084-5cfd"', ACCEPTED, "07033084-5cfd", ""),
        ("jasmin", 412, 'Error "No route found"', REJECTED, None, "No route found"),
        ("jasmin", 403, 'Error "Authentication failure"', RETRY, None, "Authentication failure"),
        (
            "playsms",
            200,
            '{"data":[{"status":"OK","error":"0","smslog_id":"5","to":"1"}],"error_string":null}',
            ACCEPTED,
            "5",
            "0",
        ),
        ("playsms", 200, '{"status":"ERR","error":"100","error_string":"authentication failed"}', REJECTED, None, None),
        ("twilio", 201, '{"sid":"SM1","status":"queued","message":null}', ACCEPTED, "SM1", ""),
        ("twilio", 400, '{"code":21211,"message":"Invalid \'To\' Phone Number","status":400}', REJECTED, None, None),
        ("twilio", 429, '{"code":20429,"message":"Too Many Requests","status":429}', RETRY, None, None),
        ("infobip", 200, '{"messages":[{"messageId":"0abc","status":{"groupName":"PENDING"}}]}', ACCEPTED, "0abc", ""),
        (
            "infobip",
            200,
            '{"messages":[{"status":{"groupName":"REJECTED","name":"REJECTED_NOT_ENOUGH_CREDITS","description":"Not enough"}}]}',
            REJECTED,
            None,
            "Not enough",
        ),
        (
            "infobip",
            401,
            '{"requestError":{"serviceException":{"messageId":"UNAUTHORIZED","text":"Invalid"}}}',
            RETRY,
            None,
            "Invalid",
        ),
        ("infobip", 200, "<html>", UNREADABLE, None, ""),
        ("vonage", 200, '{"messages":[{"status":"0","message-id":"0C"}]}', ACCEPTED, "0C", ""),
        ("vonage", 200, '{"messages":[{"status":"1","error-text":"Throughput"}]}', RETRY, None, "Throughput"),
        ("vonage", 200, '{"messages":[{"status":"4","error-text":"Bad Credentials"}]}', REJECTED, None, "Bad Credentials"),
        ("plain", 200, '{"id":"x1"}', ACCEPTED, "x1", ""),
        ("plain", 422, '{"error":"bad number"}', REJECTED, None, "bad number"),
    ],
)
def test_each_gateway_preset_parses_the_responses_of_its_gateway(
    preset: str, status: int, body: str, outcome: SubmitOutcome, gateway_id: str | None, detail: str | None
) -> None:
    result = classify(settings(preset), SendResult(status, body.encode(), None, "", 1))
    assert (result.outcome, result.gateway_message_id) == (outcome, gateway_id)
    if detail is not None:
        assert result.detail == detail


@pytest.mark.parametrize(
    ("preset", "parameters", "data", "word", "gateway_id"),
    [
        ("kannel", {"status": "1", "answer": "id:1 stat:DELIVRD", "time": "1795000000"}, None, "1", None),
        ("jasmin", {"id": "07033084", "level": "2", "message_status": "DELIVRD"}, None, "DELIVRD", "07033084"),
        ("playsms", {"status": "3", "smslog_id": "5"}, None, "3", "5"),
        ("twilio", {"MessageSid": "SM1", "MessageStatus": "delivered"}, None, "delivered", "SM1"),
        (
            "infobip",
            {},
            {"results": [{"messageId": "0abc", "status": {"name": "DELIVERED_TO_HANDSET"}, "error": {"name": "NO_ERROR"}}]},
            "DELIVERED_TO_HANDSET",
            "0abc",
        ),
        ("vonage", {}, {"messageId": "0C", "status": "delivered", "err-code": "0", "price": "0.03"}, "delivered", "0C"),
        ("plain", {}, {"id": "x1", "status": "DELIVERED"}, "DELIVERED", "x1"),
    ],
)
def test_each_gateway_preset_parses_the_delivery_reports_of_its_gateway(
    preset: str, parameters: dict[str, Any], data: Any, word: str, gateway_id: str | None
) -> None:
    # If a gateway reports no id, the URL of its reports contains the reference.
    reference = None if gateway_id else "1"
    [report] = read_reports(settings(preset), parameters, data, reference, NOON).reports
    assert (report.word, report.gateway_message_id) == (word, gateway_id)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("nope", {}, "there is no preset"),
        ("twilio", {"account_sid": "AC1"}, "needs the option auth_token"),
        ("kannel", {"username": "u", "password": "p", "pasword": "p"}, "has no option pasword"),
    ],
)
def test_a_gateway_preset_with_missing_or_unknown_options_is_rejected(name: str, options: dict[str, str], reason: str) -> None:
    with pytest.raises(PresetError, match=reason):
        build_settings(name, options)
