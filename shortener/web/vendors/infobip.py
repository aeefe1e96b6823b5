"""Infobip's words: its fully featured text message, the end of a conversion process, and conversion rates.

Numbers are written without a plus here, and times as 2026-11-20T12:00:00.000+0000.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict

from shortener.conversions.parsing import END_ACTION, ConversionReport
from shortener.errors import ApiError, Detail, ErrorCode
from shortener.ids import new_message_id
from shortener.messages.plan import RewriteItem
from shortener.messages.spans import TrackMode
from shortener.reporting import conversion_processes
from shortener.reporting.conversion_processes import Granulation, ProcessCounts
from shortener.times import end_of, start_of
from shortener.web.endpoint import Call, Endpoint, RequestModel, ResponseModel
from shortener.web.fields import Sender, Text, check_metadata
from shortener.web.period import Period
from shortener.web.rewrite_shapes import MAX_BODY, MessageId, RewrittenLinkFields, Tracking

_PLAIN_NUMBER = re.compile(r"[1-9][0-9]{6,14}")


# The message.

_EXAMPLE: JsonDict = {
    "messages": [
        {"from": "InfoSMS", "destinations": [{"to": "41793026731"}], "text": "Your PIN is 1a2B3c, see https://shop.example/pin"}
    ],
    "tracking": {"track": "SMS", "type": "One_Time_Pin"},
    "urlOptions": {"shortenUrl": True},
}


class InfobipDestination(RequestModel):
    to: str = Field(description="International number, with or without a plus, such as 41793026731.")
    message_id: MessageId | None = Field(None, alias="messageId", description="Minted when absent.")


def _check_callback_data(value: str) -> str:
    check_metadata({"callbackData": value})
    return value


#: What concerns whoever sends the message: taken, and not looked at.
_OfTheSender = Annotated[Any, Field(description="For the sender; taken and not looked at.")]


class InfobipText(RequestModel):
    """One text for one recipient or more."""

    from_: Sender = Field("", alias="from", description="Sender, echoed in events.")
    destinations: list[InfobipDestination] = Field(min_length=1)
    text: str = Field(max_length=MAX_BODY, description='May hold #track("url") and #trackurl("url","label") too.')
    callback_data: Annotated[Text, AfterValidator(_check_callback_data)] | None = Field(
        None, alias="callbackData", description="Told back in events, as callbackData in the format infobip. At most 4 KiB."
    )
    delivery_time_window: _OfTheSender = Field(None, alias="deliveryTimeWindow")
    flash: _OfTheSender = None
    intermediate_report: _OfTheSender = Field(None, alias="intermediateReport")
    language: _OfTheSender = None
    notify_content_type: _OfTheSender = Field(None, alias="notifyContentType")
    notify_url: _OfTheSender = Field(None, alias="notifyUrl")
    regional: _OfTheSender = None
    send_at: _OfTheSender = Field(None, alias="sendAt")
    transliteration: _OfTheSender = None
    validity_period: _OfTheSender = Field(None, alias="validityPeriod")


class InfobipUrlOptions(RequestModel):
    """How the URLs of all texts are shortened. A short link is always tracked, and keeps its https://."""

    shorten_url: bool = Field(True, alias="shortenUrl", description="Replace every URL.")
    track_clicks: bool = Field(True, alias="trackClicks", description="False is refused beside shortenUrl.")
    remove_protocol: Literal[False] = Field(False, alias="removeProtocol", description="Some phones know no link without one.")
    custom_domain: Text | None = Field(None, alias="customDomain", max_length=255, description="The application's own, or none.")


class InfobipRequest(RequestModel):
    """Infobip's fully featured text message."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    bulk_id: Text = Field("", alias="bulkId", max_length=100, description="The message_request_id in events; minted when absent.")
    messages: list[InfobipText] = Field(min_length=1)
    tracking: Tracking | None = Field(None, description="With track URL every URL of the texts is replaced, too.")
    url_options: InfobipUrlOptions | None = Field(None, alias="urlOptions")


class InfobipStatus(ResponseModel):
    groupId: int
    groupName: str
    id: int
    name: str
    description: str


class InfobipMessageFields(ResponseModel):
    to: str = Field(description="Without a plus.")
    status: InfobipStatus
    smsCount: int = Field(description="Segments of the rewritten text.")
    messageId: str
    text: str = Field(description="The text to send to this recipient.")
    links: list[RewrittenLinkFields]
    encoding: Literal["GSM-7", "UCS-2"]
    warnings: list[str]


class InfobipResponse(ResponseModel):
    """Infobip's shape: one entry per destination, in request order. Nothing was sent: `text` is what is to be sent."""

    bulkId: str
    messages: list[InfobipMessageFields]


#: What Infobip answers at first, whatever becomes of the message.
_PENDING = {
    "groupId": 1,
    "groupName": "PENDING",
    "id": 7,
    "name": "PENDING_ENROUTE",
    "description": "Message sent to next instance",
}


def outgoing(request: InfobipRequest, host: str) -> list[RewriteItem]:
    """`host`: of the short links that the application gets. Raises ApiError INVALID_REQUEST."""
    track = _track(request, host)
    tracking = (request.tracking.track, request.tracking.type) if request.tracking else ("", "")
    bulk_id = request.bulk_id or new_message_id()
    return [
        RewriteItem(
            to=tuple(_with_plus(destination.to) for destination in message.destinations),
            body=message.text,
            message_ids=tuple(destination.message_id for destination in message.destinations),
            field_path=_Place(f"messages.{index}"),
            track=track,
            from_address=message.from_,
            request_id=bulk_id,
            metadata=None if message.callback_data is None else {"callbackData": message.callback_data},
            tracking=tracking,
        )
        for index, message in enumerate(request.messages)
    ]


class _Place:
    """Where a field of ours stands in a message of Infobip's."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, name: str, recipient: int | None) -> str:
        if recipient is not None:
            return f"{self._path}.destinations.{recipient}.{'messageId' if name == 'message_id' else name}"
        return f"{self._path}.{'text' if name == 'body' else name}"


def _track(request: InfobipRequest, host: str) -> TrackMode:
    options = request.url_options
    every = request.tracking is not None and request.tracking.track == "URL"
    if options is None or not (options.shorten_url or every):
        return "all_urls" if every else "directives"
    wrong = []
    if not options.track_clicks:
        wrong.append(Detail("urlOptions.trackClicks", "a short link is always tracked; send shortenUrl false as well"))
    if options.custom_domain and options.custom_domain.lower() != host:
        wrong.append(Detail("urlOptions.customDomain", f"short links of this application are on {host}"))
    if wrong:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=wrong)
    return "all_urls"


def _with_plus(number: str) -> str:
    return f"+{number}" if _PLAIN_NUMBER.fullmatch(number) else number


def answer(request: InfobipRequest, rewritten: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bulkId": request.bulk_id or rewritten[0]["message_request_id"],
        "messages": [
            {
                "to": message["to"].removeprefix("+"),
                "status": _PENDING,
                "smsCount": message["segments"],
                "messageId": message["message_id"],
                "text": message["body"],
                "links": message["links"],
                "encoding": message["encoding"],
                "warnings": message["warnings"],
            }
            for message in rewritten
        ],
    }


# Conversion processes.


class ConversionEndResponse(ResponseModel):
    """The process that the message belongs to."""

    processKey: str


async def log_end(call: Call[None, None]) -> ConversionEndResponse:
    message_id = call.path["messageId"]
    key = await call.service.database.read(conversion_processes.find_process_key, call.application_id, message_id)
    if key is None:
        raise ApiError(ErrorCode.MESSAGE_NOT_FOUND)
    intake = ConversionReport(at=call.service.clock(), message_id=message_id, action=END_ACTION)
    await call.service.conversions.ingest(call.application_id, intake)
    return ConversionEndResponse(processKey=key)


class ConversionRateQuery(Period):
    """Without `since`: the last 24 hours before `until`. Without `intervalGranulation`: one interval."""

    aggrType: Literal["byCountry"] | None = Field(None, description="One entry for each country of an interval.")
    intervalGranulation: Granulation | None = Field(
        None,
        description=f"In UTC. Weeks start on Monday; MINUTE: 15 minutes. At most {conversion_processes.MAX_INTERVALS} intervals.",
    )


class CumulativeRate(ResponseModel):
    startCount: int = Field(description="Messages rewritten.")
    endCount: int = Field(description="Messages whose process ended.")
    conversionRate: float = Field(description="endCount / startCount; 0 when nothing began.")


class IntervalRate(CumulativeRate):
    intervalStart: str


class CountryRate(IntervalRate):
    country: str | None = Field(description="ISO 3166 code; null when it is not known.")


class ConversionRateResponse(ResponseModel):
    """Oldest interval first. By country: those where something happened, most starts first."""

    statistics: list[IntervalRate | CountryRate]
    cumulativeStatistics: CumulativeRate


async def conversion_rate(call: Call[ConversionRateQuery, None]) -> dict[str, Any]:
    query, service = call.query, call.service
    process_id = await service.database.read(conversion_processes.find_process, call.application_id, call.path["processKey"])
    if process_id is None:
        raise ApiError(ErrorCode.NOT_FOUND, "There is no process with this key in the application.")
    # One millisecond more: what happens at this moment is counted too.
    until = service.clock() + timedelta(milliseconds=1) if query.until is None else end_of(query.until)
    since = until - timedelta(hours=24) if query.since is None else start_of(query.since)
    try:
        intervals = conversion_processes.split_interval(since, until, query.intervalGranulation)
    except ValueError as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, details=[Detail("intervalGranulation", str(error))]) from None
    rates = await service.database.read(conversion_processes.conversion_rates, process_id, [within for _, within in intervals])
    statistics: list[dict[str, Any]] = []
    for (begins, _), by_country in zip(intervals, rates, strict=True):
        start = {"intervalStart": _time(begins)}
        if query.aggrType is None:
            statistics.append({**start, **_told(ProcessCounts.total(by_country.values()))})
        else:
            ordered = sorted(by_country.items(), key=lambda item: (-item[1].starts, item[0]))
            statistics += [{**start, "country": country or None, **_told(rate)} for country, rate in ordered]
    every = ProcessCounts.total(rate for by_country in rates for rate in by_country.values())
    return {"statistics": statistics, "cumulativeStatistics": _told(every)}


def _told(rate: ProcessCounts) -> dict[str, Any]:
    return {"startCount": rate.starts, "endCount": rate.ends, "conversionRate": rate.conversion_rate}


def _time(at: datetime) -> str:
    """As Infobip writes and its clients read times."""
    return f"{at.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}+0000"


_TAG = "Conversion processes"

ENDPOINTS = [
    Endpoint(
        "POST",
        "/ct/1/log/end/{messageId:path}",
        log_end,
        "Report the end of a message's conversion process (Infobip)",
        _TAG,
        permission="sms.send",
        response=ConversionEndResponse,
        errors=(ErrorCode.MESSAGE_NOT_FOUND, ErrorCode.CONVERSION_CONFLICT),
        description=f"Records a conversion of the action `{END_ACTION}`, once; a repeat answers the same. Messages rewritten with "
        "the same `tracking` share a process, and so do all those without `tracking`.",
    ),
    Endpoint(
        "GET",
        "/ct/1/processes/{processKey}/conversionrate",
        conversion_rate,
        "Conversion rate of a process (Infobip)",
        _TAG,
        permission="sms.read",
        query=ConversionRateQuery,
        response=ConversionRateResponse,
        description="From counts that are kept as things happen. A start is counted when the message is rewritten, an end when it "
        "is reported; the quarters of an hour that `since` and `until` lie in are counted as a whole.",
    ),
]
