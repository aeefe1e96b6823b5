"""This module contains descriptions of fields for the OpenAPI document. A field with the same name has the same description in
all schemas, so that one name has one meaning in the whole API. If a field has a special meaning in one model, this model
describes the field itself. `complete` adds the texts to the schemas, and adds the format `date-time` to every time of a response.
A test fails if a field has no description.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Descriptions of fields. The key is the name of the field. If the field needs another text in one schema, the key is
#: `Schema.field`.
_TEXTS: Mapping[str, str] = {
    "accepted": "true: the report was accepted.",
    "accessed": "true: a person opened the link at least once.",
    "action": "Action of the person, for example sale. It is stored in lower case.",
    "actions": "Counts by action.",
    "apple_app_site_association": "Content of /.well-known/apple-app-site-association on the domain. null: there is no such file.",
    "application_id": "Id of the application.",
    "assetlinks": "Content of /.well-known/assetlinks.json on the domain. null: there is no such file.",
    "at": "Time of the entry.",
    "attempt": "Number of the delivery attempt, from 1.",
    "attempts": "Delivery attempts.",
    "blocked_hosts": "Blocked hosts of the application.",
    "browser": "Browser of the client, or app with a built-in browser. null: not known yet.",
    "bulkId": "Id of the request, which Infobip's responses contain.",
    "by": "Who made the change: an API key, or the command line.",
    "callbackData": "Data that the caller has sent in `callbackData` of the request.",
    "callback_secret": "The new signing secret. It is shown only once.",
    "campaign": "Name of the campaign. Empty: the message has no campaign.",
    "campaignReferenceId": "Name of the campaign. Absent: the message has no campaign.",
    "campaigns": "Counts by campaign.",
    "changes": "The changed fields with their new values.",
    "checks": "Result of each check, by the name of the dependency.",
    "click_id": "Id of the click.",
    "clicks": "Number of clicks by people.",
    "ClicksResponse.clicks": "Hits of this page, newest first.",
    "client_certificate": "Client certificate with its private key in PEM format, for receivers that require a client "
    "certificate. It is stored encrypted.",
    "code": "Code of the short link, the last part of its URL.",
    "company_id": "Number of the company. Events in Syniverse's format contain it as `company-id`.",
    "concurrency": "Maximum number of requests that are sent to the tracker at the same time.",
    "conversion_actions": (
        "Actions of the conversions that the tracker receives. Upper and lower case make no difference. null: all actions."
    ),
    "conversion_dispositions": (
        "Dispositions of the conversions that the tracker receives. none: conversions without a disposition. null: all conversions."
    ),
    "conversion_fields": "Names of the fields in the JSON that is sent to `conversion_url`. null: the default fields.",
    "conversion_id": "Id of the conversion.",
    "conversion_url": "URL that receives each conversion. null: the application has no such URL.",
    "conversionTracking": "Conversion process of the messages.",
    "conversions": "Number of conversions.",
    "ConversionsResponse.conversions": "Conversions of this page, newest first.",
    "cost": "Price of the message. null: not reported.",
    "countries": "Counts by country.",
    "country": "Country of the recipient's phone number, as ISO 3166 code. null: the number belongs to no country.",
    "created_at": "Time of creation.",
    "cumulativeStatistics": "Counts of the whole period.",
    "currency": "Currency as ISO 4217 code. null: not reported.",
    "day": "The day, as YYYY-MM-DD in `tz`.",
    "days": "Counts by day.",
    "default": "true: new links begin with this domain if the message names no other domain.",
    "delivered": "Number of messages that were reported as delivered.",
    "delivered_at": "Time of delivery to the phone. null: not reported.",
    "deliveries": "Deliveries, newest first.",
    "delivery": "The delivery.",
    "delivery_id": "Id of the delivery.",
    "description": "Explanation for people. The text may change between versions.",
    "destinations": "Counts by destination.",
    "InfobipText.destinations": "Recipients of the message.",
    "detail": "Text that explains why the attempt failed.",
    "details": "The invalid fields.",
    "device": "Kind of device: phone, tablet, desktop, bot or other. null: not known yet.",
    "disabled_at": "Time when the link was disabled. null: the link is enabled.",
    "disposition": "Disposition of the conversion: `positive` or `negative`. null: the conversion has no disposition.",
    "domain": "The domain.",
    "DomainCheckResponse.domain": "The host that was checked.",
    "domains": "Own domains of the application.",
    "ApplicationResponse.domains": "The application's own domains that are enabled, each as the beginning of its short links "
    "(`https://HOST/PATH`).",
    "enabled": "false: switched off.",
    "encoding": "Encoding of the text as an SMS: `GSM-7` or `UCS-2`.",
    "erased": "Number of erased rows by kind.",
    "error": "Kind of the failure. null: the attempt succeeded.",
    "error_code": "Error code. It is stable, so that programs can test it.",
    "event": "Name of the event.",
    "EventResponse.event": "The event with its deliveries.",
    "event_id": "Id of the event. It is the same in all attempts to deliver the event.",
    "events": "Names of the events to which the tracker subscribes.",
    "ErasedRows.events": "Events.",
    "EventsResponse.events": "Events of this page, newest first.",
    "expires_at": "Time of expiry.",
    "external_message_request_id": "Id of the request in the caller's system. Empty: the request had no such id.",
    "fallback_url": "URL to which an expired link redirects. null: there is no fallback URL at this level (link, domain or "
    "application).",
    "fields": "Names of the fields in bodies of the format `json`. null: the default fields.",
    "filter": "The filters that select the links.",
    "finished_at": "Time when the delivery or the update of links ended. null: it has not ended yet.",
    "first_rule": "Rule that classified the hit when it was recorded. null: `rule` is still the rule of that time.",
    "format": "Format of the body: `scg` (Syniverse), `json` (23 Telecom), `xoxzo` or `infobip`.",
    "from": "Sender of the message. Empty: the message has no sender.",
    "groupId": "Number of the status group of Infobip.",
    "groupName": "Name of the status group of Infobip.",
    "headers": "Static headers of each request to the tracker: names and values.",
    "health": "Health of the tracker: whether its deliveries succeed, and how many wait.",
    "hits": "Hits on links.",
    "home_url": "URL to which the root path / of the domain redirects. null: the root path returns 404.",
    "host": "Host, without scheme and path.",
    "hours": "Counts by hour of the day.",
    "http_status": "HTTP status of the response. null: there was no response.",
    "id": "Id.",
    "InfobipCursor.limit": "Maximum number of messages in a page.",
    "InfobipMessage.content": "Content of the message.",
    "InfobipMessage.options": "Options of the message.",
    "InfobipMessage.webhooks": "Notifications about the message.",
    "InfobipReportsResponse.results": "Messages, newest first.",
    "InfobipSmsContent.text": "Text of the message.",
    "InfobipV3ReportsResponse.cursor": "Position of the next page.",
    "InfobipV3ReportsResponse.results": "Messages, newest first.",
    "InfobipV3Request.options": "Options of all messages.",
    "idempotency_key": "Idempotency-Key of the request.",
    "intervalStart": "Start of the interval.",
    "key_id": "Id of the key.",
    "key": "The properties of the API key. The key itself is not included.",
    "keys": "API keys of the application, oldest first.",
    "label": "Label of the `#trackurl` directive. null: the link has none.",
    "labels": "Counts by label.",
    "last_failure_at": "Time of the latest failed attempt. null: no attempt has failed.",
    "last_success_at": "Time of the latest successful attempt. null: no attempt has succeeded.",
    "last_used_at": "Time of the latest use, accurate to some minutes. null: not used.",
    "link": "The link.",
    "LinkTracking.link": "Destination of the link.",
    "link_tracking": "The first link of the message, and whether this link was clicked. null: the message has no link.",
    "links": "Links of the message, in the order of the text.",
    "ErasedRows.links": "Links.",
    "LinksResponse.links": "Links of this page. The links of the newest message come first.",
    "max_attempts": "Maximum number of attempts, including the first.",
    "max_per_second": "Maximum number of requests per second, for all processes together. null: no limit.",
    "message": "The message.",
    "message_id": "Id of the message, unique in the application.",
    "message_request_id": "Id of the request that the message belongs to.",
    "messageId": "Id of the message.",
    "messages": "The messages.",
    "ErasedRows.messages": "Messages.",
    "metadata": "Metadata of the message, a flat object. null: the message has none.",
    "method": "HTTP method of the requests: `POST` or `GET`.",
    "msgid": "Id of the message.",
    "name": "Name, for people.",
    "new_state": "State of the message after the event. null: the event changes no state.",
    "permissions": "What the key permits.",
    "position": "Position of the error in the text, counted in characters from 0. null: the error concerns no position.",
    "postback_key": "The postback key. It is shown only once.",
    "postback_keys": "Postback keys of the application.",
    "previous_state": "State of the message before the event. null: the event changes no state.",
    "previous_valid_until": "Time until which the replaced credential stays valid. null: no credential was replaced.",
    "processKey": "Key of the conversion process.",
    "rate_limit": "Maximum number of requests per minute. null: no limit.",
    "read": "Number of messages that were reported as read.",
    "read_at": "Time when the message was read. null: not reported.",
    "reason": "Explanation for people. The text may change between versions.",
    "reason_code": "Reason code of the carrier. null: not reported.",
    "reason_description": "Reason text of the carrier. null: not reported.",
    "received_at": "Time of receipt.",
    "recipient": "Phone number of the recipient.",
    "refused": "Refused reports of this page, newest first.",
    "refused_id": "Id of the refused report.",
    "replayed": "Number of deliveries that will be sent again.",
    "permanent": "true: the error is permanent, so another attempt would also fail.",
    "price": "Price of the message. Absent: the message has no price.",
    "pricePerMessage": "Price of the message as a number.",
    "results": "One entry for each item of the request, in order.",
    "revision": "Number of the revision, from 1.",
    "revoked_at": "Time when the key was revoked. null: the key is not revoked.",
    "rule": "Rule that classified the hit. null: the event is not about a hit.",
    "schedule": "Seconds between the attempts.",
    "seconds_since_delivered": "Seconds from the delivery of the message to the hit. null: no delivery was reported.",
    "segments": "Number of SMS segments of the text.",
    "sender": "Sender of the message.",
    "sender_id_alias": "Readable name of the sender. Events contain it.",
    "sender_id_id": "Id of the sender. Events contain it.",
    "sent": "Number of messages that were reported as sent.",
    "sent_at": "Time when the message was sent. null: not reported.",
    "short_url": "The short link.",
    "shortlink": "The short link.",
    "source": "Traffic source of the message: `api` or `campaign`.",
    "state": "Current state.",
    "statistics": "Counts by interval.",
    "sentAt": "Time when the message was sent, in Infobip's format. If it was not sent, the time when it was rewritten.",
    "status": "Always true in a successful response.",
    "success": "Which responses of the tracker mean success.",
    "telecom_message_id": "Message id of the carrier. null: not reported.",
    "timeout": "Time limit of an attempt in seconds.",
    "to": "Phone number of the recipient in E.164. Masked in lists without the permission `privacy.reveal`.",
    "track": "What is tracked: `SMS` (the message) or `URL` (its links).",
    "tracker_id": "Id of the tracker (the endpoint that receives events).",
    "trackers": "Trackers of the application.",
    "tracking": "Conversion tracking of Infobip. It assigns the message to one of the conversion processes.",
    "transaction_id": "Id of the transaction in the reporting system. null: not reported.",
    "tz": "Time zone of the figures.",
    "update": "The update with its progress.",
    "update_id": "Id of the update.",
    "updated_at": "Time of the latest change.",
    "updates": "Updates of links, newest first.",
    "url": "Destination of the link.",
    "SavedTrackerResponse.url": "URL of the tracker. It may contain placeholders.",
    "TrackerFields.url": "URL of the tracker. It may contain placeholders.",
    "TrackerResponse.url": "URL of the tracker. It may contain placeholders.",
    "urlOptions": "Options of Infobip for URLs in the texts.",
    "user_agent": "User agent of the hit. null: the request had none, or it was removed for privacy.",
    "value": "Value as a decimal string. null: not reported.",
    "verdict": "Verdict of the hit: human, suspected or ignored.",
    "warnings": "Warnings about possible problems, as texts for people.",
}
#: Descriptions of the fields of events that trackers receive. The format of Infobip writes the same names in camel case.
_EVENT_TEXTS: Mapping[str, str] = {
    "accessed_on": "Time of the first click: YYYY-MM-DD HH:MM:SS in UTC. null: there was no click yet.",
    "application_id": "Id of the application.",
    "bulk_id": "Id of the request that the message belongs to.",
    "callback_data": (
        "The field `callbackData` of the message's metadata, or all metadata as JSON. null: the message has no metadata."
    ),
    "city": "Always null.",
    "click": "The click.",
    "click_country": "Country of the IP address from which the click came, as ISO 3166 code. null: not known.",
    "click_number": "Which click on the link this is: 1 for the first click.",
    "clicked_at": "Time of the click.",
    "company-id": "Number of the company. null: the application has no such number.",
    "conversion": "The conversion.",
    "conversion_metadata": "Further parameters of the conversion report. null: there were none.",
    "conversion_status": "Status word of the conversion. null: not reported.",
    "count": "Number of dead deliveries. null: the event is not about dead deliveries.",
    "country_name": "Always null.",
    "delivery_event": "Name of the event whose delivery is dead. null: this event is not about a dead delivery.",
    "device_name": "Always null.",
    "device_type": "Always null.",
    "done_at": "Time of delivery to the phone. null: not reported.",
    "entity_id": "Number of the company. null: the application has no such number.",
    "event": "Name of the event. In the format `scg`: the event with its fields.",
    "evt-tp": "Type of the event, for example message_state_change.",
    "first_for_link": "true: this is the first click on the link.",
    "first_for_message": "true: this is the first click on the message.",
    "fld-val-list": "The fields of the event.",
    "fragments_count": "Number of SMS segments that the carrier billed. null: not reported.",
    "from_address": "Sender of the message. Empty: the message has no sender.",
    "geo_location_info": "Always without content.",
    "has_attachment": "Always false.",
    "key_kind": "Kind of the key that expires. null: the event is not about a key.",
    "mt_price": "Price of the message. null: not reported.",
    "notification_type": "Kind of the event, for example CLICKED.",
    "num_parts": "Number of SMS segments. null: not reported.",
    "operation": "Details of an operations event, which is about a tracker, dead deliveries or a key.",
    "os": "Always null.",
    "phone": "Phone number of the recipient in E.164.",
    "previous_status": "Status word of the previous revision. null: it had none, or this is the first revision.",
    "previous_value": "Value of the previous revision. null: it had none, or this is the first revision.",
    "price": "Price of the message.",
    "price_per_message": "Price of the message. null: not reported.",
    "recipient_info": "Always without content.",
    "report_status": "Status word of the carrier, for example DELIVRD. null: not reported.",
    "seconds_since_sent": "Seconds from sending the message to the click. null: not known.",
    "send_date_time": "Time of the event in milliseconds since 1970.",
    "sender_id": "Sender that the recipient sees.",
    "sent_at": "Time when the message was sent. null: not reported.",
    "sent_time": "Time when the message was sent: YYYY-MM-DD HH:MM:SS in UTC. null: not reported.",
    "sms_count": "Number of SMS segments that the carrier billed. null: not reported.",
    "status": "Depending on the event: the new state of the message, the status word of the conversion, or the status word "
    "of the delivery report.",
    "status_code": "Reason code of the carrier. null: not reported.",
    "timestamp": "Time of the event.",
    "to_address": "Phone number of the recipient in E.164.",
    "topic": "Always SCG-Message.",
    "verdict_reason": "Rule that determined the verdict.",
}
#: Descriptions of the field `status`, by name of the schema. In all other schemas, `status` is true if the call succeeded.
_STATUS_TEXTS: Mapping[str, str] = {
    "AttemptFields": "HTTP status of the response. null: there was no response.",
    "ConversionStatus": "Status word of the latest revision. null: not reported.",
    "ConversionRevision": "Status word of this revision. null: not reported.",
    "ListedConversion": "Status word of the latest revision. null: not reported.",
    "InfobipMessageFields": "Status of the message in Infobip's form.",
    "InfobipReport": "Status of the message in Infobip's form.",
    "InfobipV3Report": "Status of the message in Infobip's form.",
    "InfobipV3MessageFields": "Status of the message in Infobip's form.",
    "XoxzoStatusResponse": "State of the message in Xoxzo's words.",
    "LivenessResponse": "Always `ok`.",
    "Error": "Always false in an error.",
}
_TIME_NAMES = frozenset({"at", "since", "until", "timestamp"})


def complete(schemas: Mapping[str, Any], *, of_events: bool = False) -> None:
    """Add the missing descriptions of fields to all schemas, and add the format `date-time` to times.

    `of_events` is true for the schemas of the bodies that trackers receive."""
    for name, schema in schemas.items():
        for field, definition in schema.get("properties", {}).items():
            if of_events:
                snake = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", field).lower()
                text = _EVENT_TEXTS.get(snake) or _TEXTS.get(field) or _TEXTS.get(snake)
            else:
                text = _text_of(name, field)
            if text and not definition.get("description"):
                definition["description"] = text
            if is_time(field):
                _add_format(definition)


def is_time(field: str) -> bool:
    """Return whether a field contains a time in ISO 8601: its name is in `_TIME_NAMES`, or ends with _at or _until."""
    return field in _TIME_NAMES or field.endswith(("_at", "_until"))


def _text_of(schema: str, field: str) -> str | None:
    if field == "status" and schema in _STATUS_TEXTS:
        return _STATUS_TEXTS[schema]
    return _TEXTS.get(f"{schema}.{field}") or _TEXTS.get(field)


def _add_format(definition: dict[str, Any]) -> None:
    """Add `format: date-time` to the schema of a field that is a string, or a string or null."""
    plain = [one for one in (definition, *definition.get("anyOf", ())) if one.get("type") == "string"]
    if len(plain) == 1 and not {"format", "pattern", "enum", "maxLength"} & plain[0].keys():
        plain[0]["format"] = "date-time"
