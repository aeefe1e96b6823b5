"""Presets: the settings of well-known HTTP gateways. The operator adds only the host and the credentials.

Each preset names its options and builds the settings of the kind `http` (http.py) from their values. The sources are the public
documentation of each product (2026): Kannel user guide 1.4.5, Jasmin HTTP API, playSMS webservices, Twilio Messages resource,
Infobip SMS API v3, Vonage SMS API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from shortener.model import record

Options = Mapping[str, str]


@record
class Preset:
    """A named template for the settings of a gateway.

    `options` maps the name of each option to its description. The options that have a value in `defaults` are optional. `build`
    returns the settings from the values of the options. `build` stores some options in `settings["variables"]` under their own
    names. `read` finds the other options in the stored settings, for example in the URL. If somebody has changed the URL to a
    form that `build` never produces, `read` may return an empty dict."""

    name: str
    product: str
    options: Mapping[str, str]
    defaults: Mapping[str, str]
    build: Callable[[Options], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], dict[str, str]]


class PresetError(ValueError):
    """Raised if the options of a preset are incomplete. The text of the error states what is missing."""


def build_settings(name: str, options: Options) -> dict[str, Any]:
    """Return the settings of a gateway from a preset and the values of its options. Raise PresetError."""
    preset = PRESETS.get(name)
    if preset is None:
        raise PresetError(f"there is no preset {name!r}; known: {', '.join(PRESETS)}")
    if unknown := sorted(set(options) - set(preset.options)):
        raise PresetError(f"the preset {name} has no option {unknown[0]}; known: {', '.join(preset.options)}")
    values = {**preset.defaults, **{key: value for key, value in options.items() if value != ""}}
    if missing := [option for option in preset.options if option not in values]:
        raise PresetError(f"the preset {name} needs the option {missing[0]}: {preset.options[missing[0]]}")
    return preset.build(values)


def read_options(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a preset from the settings that were built from it. An option that the settings do not contain is
    absent."""
    preset = PRESETS[name]
    values = {**settings.get("variables", {}), **(preset.read(settings) if settings.get("url") else {})}
    return {option: value for option, value in values.items() if option in preset.options and value}


def _read_url(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the option `url` from a stored URL. The preset uses this option as the URL, and may append a query."""
    return {"url": settings["url"].partition("?")[0]}


def _read_plain(settings: Mapping[str, Any]) -> dict[str, str]:
    return {"url": settings["url"]}


def _read_base(path: str) -> Callable[[Mapping[str, Any]], dict[str, str]]:
    """Return a function that returns the option `url` from a stored URL. The preset builds the URL from this option and `path`."""

    def read(settings: Mapping[str, Any]) -> dict[str, str]:
        base = settings["url"].removesuffix(path)
        return {"url": base} if base != settings["url"] else {}

    return read


def _read_twilio(settings: Mapping[str, Any]) -> dict[str, str]:
    base, is_found, rest = settings["url"].partition("/2010-04-01/Accounts/")
    if not is_found:
        return {}
    account = unquote(rest.partition("/")[0])
    variables = settings.get("variables", {})
    user = variables.get("username", "")
    return {
        "url": base,
        "account_sid": account,
        "auth_token": variables.get("password", ""),
        "api_key": user if user != account else "",
        "messaging_service_sid": variables.get("service", ""),
    }


def _base(options: Options) -> str:
    if "?" in options["url"]:
        raise PresetError("the option url must not contain a query, because the preset adds the query")
    return options["url"].rstrip("/")


def _kannel(options: Options) -> dict[str, Any]:
    # %d, %A and %T are Kannel's placeholders for the type of a delivery report, the response of the SMSC and the time of the
    # report. Kannel replaces them when it calls the URL.
    report = "{report_url}" + quote("?status=%d&answer=%A&time=%T", safe="")
    smsc = "&smsc={smsc}" if options["smsc"] else ""
    return {
        "url": f"{_base(options)}?username={{username}}&password={{password}}&from={{sender_id}}&to={{phone}}&text={{text}}"
        f"&coding={{encoding}}&charset=UTF-8&dlr-mask=31&dlr-url={report}{smsc}",
        "method": "GET",
        "variables": {
            "username": options["username"],
            "password": options["password"],
            **({"smsc": options["smsc"]} if options["smsc"] else {}),
        },
        "encodings": {"GSM-7": "0", "UCS-2": "2"},
        "success_statuses": "202",
        "error_path": "{value}",
        "report_fields": {"status": "status", "description": "answer", "timestamp": "time"},
        # 34 and 66 are the codes of newer Kannel versions for the failures "expired" and "unknown".
        "report_states": {"1": "DELIVERED", "2": "FAILED", "4": "-", "8": "SENT", "16": "FAILED", "34": "EXPIRED", "66": "-"},
    }


def _jasmin(options: Options) -> dict[str, Any]:
    return {
        "url": _base(options),
        "method": "POST",
        "content_type": "application/x-www-form-urlencoded",
        "body": "username={username}&password={password}&from={sender_id}&to={phone}&hex-content={text_hex}&coding={encoding}"
        "&dlr=yes&dlr-level=3&dlr-method=POST&dlr-url={report_url}",
        "variables": {"username": options["username"], "password": options["password"]},
        "encodings": {"GSM-7": "0", "UCS-2": "8"},
        "success_statuses": "200",
        "id_path": 'Success "{value}"',
        "error_path": 'Error "{value}"',
        "report_fields": {"status": "message_status", "id": "id", "error_code": "err"},
        "report_states": {"ESME_ROK": "SENT"},
        "report_response": "ACK/Jasmin",
    }


def _playsms(options: Options) -> dict[str, Any]:
    return {
        "url": f"{_base(options)}?app=ws&op=pv&u={{username}}&h={{token}}&to={{phone}}&from={{sender_id}}&msg={{text}}"
        "&unicode={encoding}",
        "method": "GET",
        "variables": {"username": options["username"], "token": options["token"]},
        "encodings": {"GSM-7": "0", "UCS-2": "1"},
        "success_statuses": "200",
        "success_path": "$.data.0.status|$.status",
        "success_values": ["OK"],
        "id_path": "$.data.0.smslog_id",
        "error_path": "$.data.0.error|$.error_string",
        "error_code_path": "$.data.0.error|$.error",
        "report_fields": {"status": "status", "id": "smslog_id"},
        "report_states": {"0": "-", "1": "SENT", "2": "FAILED", "3": "DELIVERED"},
    }


def _twilio(options: Options) -> dict[str, Any]:
    account = quote(options["account_sid"], safe="")
    service = "&MessagingServiceSid={service}" if options["messaging_service_sid"] else "&From={sender_id}"
    return {
        "url": f"{_base(options)}/2010-04-01/Accounts/{account}/Messages.json",
        "content_type": "application/x-www-form-urlencoded",
        "body": f"To={{phone}}{service}&Body={{text}}&StatusCallback={{report_url}}",
        "basic_auth": True,
        "variables": {
            "username": options["api_key"] or options["account_sid"],
            "password": options["auth_token"],
            **({"service": options["messaging_service_sid"]} if options["messaging_service_sid"] else {}),
        },
        "success_statuses": "200,201",
        "id_path": "$.sid",
        "error_path": "$.message",
        "error_code_path": "$.code",
        # Twilio error codes: 20429 is "too many requests"; 14107 and 30001 are "queue full".
        "retry_codes": ["20429", "14107", "30001"],
        "report_fields": {"status": "MessageStatus", "id": "MessageSid", "error_code": "ErrorCode"},
    }


def _infobip(options: Options) -> dict[str, Any]:
    return {
        "url": f"{_base(options)}/sms/3/messages",
        "headers": {"Authorization": "App {api_key}", "Accept": "application/json"},
        "variables": {"api_key": options["api_key"]},
        "body": '{"messages":[{"sender":"{sender_id}","destinations":[{"to":"{phone_digits}","messageId":"{reference}"}],'
        '"content":{"text":"{text}"},"webhooks":{"delivery":{"url":"{report_url}"},"contentType":"application/json"}}]}',
        "success_statuses": "200",
        "success_path": "$.messages.0.status.groupName",
        "success_values": ["PENDING", "DELIVERED"],
        "id_path": "$.messages.0.messageId",
        "error_path": "$.messages.0.status.description|$.requestError.serviceException.text",
        "error_code_path": "$.messages.0.status.name|$.requestError.serviceException.messageId",
        "report_items": "results",
        "report_fields": {
            "status": "status.name",
            "id": "messageId",
            "error_code": "error.name",
            "description": "error.description",
            "timestamp": "doneAt",
            "price": "price.pricePerMessage",
        },
    }


def _vonage(options: Options) -> dict[str, Any]:
    return {
        "url": f"{_base(options)}/sms/json",
        "content_type": "application/x-www-form-urlencoded",
        "body": "api_key={api_key}&api_secret={api_secret}&from={sender_id}&to={phone_digits}&text={text}&type={encoding}"
        "&client-ref={reference}&status-report-req=1&callback={report_url}",
        "variables": {"api_key": options["api_key"], "api_secret": options["api_secret"]},
        "encodings": {"GSM-7": "text", "UCS-2": "unicode"},
        "success_statuses": "200",
        "success_path": "$.messages.0.status",
        "success_values": ["0"],
        # Vonage status codes: 1 is throttled, 5 is an internal error, 8 is an account under review, and 9 is not enough credit.
        "retry_codes": ["1", "5", "8", "9"],
        "id_path": "$.messages.0.message-id",
        "error_path": "$.messages.0.error-text",
        "error_code_path": "$.messages.0.status",
        "report_fields": {"status": "status", "id": "messageId", "error_code": "err-code", "timestamp": "scts", "price": "price"},
    }


def _plain(options: Options) -> dict[str, Any]:
    authorization = {"Authorization": "Bearer {token}"} if options["token"] else {}
    return {
        "url": options["url"],
        "headers": {**authorization, "Idempotency-Key": "{reference}"},
        "variables": {"token": options["token"]} if options["token"] else {},
        "body": '{"to":"{phone}","from":"{sender_id}","text":"{text}","encoding":"{encoding}","message_id":"{message_id}",'
        '"reference":"{reference}","report_url":"{report_url}"}',
        "id_path": "$.message_id|$.id",
        "error_path": "$.description|$.message|$.error",
        "error_code_path": "$.error_code|$.code",
        "report_fields": {
            "status": "status",
            "id": "id",
            "error_code": "error_code",
            "description": "description",
            "timestamp": "timestamp",
            "price": "price",
        },
    }


_URL = "address of the gateway"
PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "kannel",
            "Kannel",
            {"url": _URL, "username": "user of sendsms-user", "password": "password of sendsms-user", "smsc": "id of the SMSC"},
            {"url": "http://127.0.0.1:13013/cgi-bin/sendsms", "smsc": ""},
            _kannel,
            _read_url,
        ),
        Preset(
            "jasmin",
            "Jasmin",
            {"url": _URL, "username": "user", "password": "password"},
            {"url": "http://127.0.0.1:1401/send"},
            _jasmin,
            _read_plain,
        ),
        Preset(
            "playsms",
            "playSMS",
            {"url": _URL, "username": "user", "token": "webservices token of the user"},
            {},
            _playsms,
            _read_url,
        ),
        Preset(
            "twilio",
            "Twilio",
            {
                "account_sid": "SID of the account (AC...)",
                "auth_token": "auth token of the account, or secret of the API key",
                "api_key": "SID of an API key (SK...), instead of the account's own credentials",
                "messaging_service_sid": "SID of a messaging service, instead of a sender",
                "url": _URL,
            },
            {"url": "https://api.twilio.com", "api_key": "", "messaging_service_sid": ""},
            _twilio,
            _read_twilio,
        ),
        Preset(
            "infobip",
            "Infobip",
            {"url": "base URL of the account", "api_key": "API key"},
            {},
            _infobip,
            _read_base("/sms/3/messages"),
        ),
        Preset(
            "vonage",
            "Vonage",
            {"api_key": "API key", "api_secret": "API secret", "url": _URL},
            {"url": "https://rest.nexmo.com"},
            _vonage,
            _read_base("/sms/json"),
        ),
        Preset("plain", "Plain HTTP", {"url": _URL, "token": "bearer token"}, {"token": ""}, _plain, _read_plain),
    )
}
