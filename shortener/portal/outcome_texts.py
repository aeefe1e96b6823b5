"""This module describes in words the outcomes of attempts to deliver events to trackers, and of attempts to send messages through
gateways.

The API and the database contain short codes such as `other_status`. The pages of the portal show the words of this module instead.
If a code is missing here, the pages show the code with spaces instead of underscores.
"""
# Tested by tests/portal/test_outcome_texts.py

from __future__ import annotations

from shortener.model import Topic

#: The label of one event, by its topic.
TOPIC_LABELS = {
    Topic.STATE: "Message state",
    Topic.CLICK: "Click",
    Topic.LATE_CLICK: "Late click",
    Topic.CONVERSION: "Conversion",
    Topic.DELIVERY: "Delivery report",
    Topic.CLICK_RETRACTED: "Click retracted",
    Topic.TEST: "Test",
    Topic.OPERATIONS: "Operations",
}

#: The outcome of a delivery that is not a success, by its code. `{status}` is the HTTP status of the response.
DELIVERY_OUTCOMES = {
    # The codes of attempts that got a response (`outcomes.OUTCOME_TABLE`).
    "refused_in_body": "the endpoint answered {status}, but without the text that means success",
    "gone": "the endpoint answered {status}: it accepts no more events",
    "rate_limited": "the endpoint answered {status}: too many requests",
    "throttled": "the endpoint answered {status}: it is unavailable for the moment",
    "form_refused": "the endpoint answered {status}: it does not accept this kind of request",
    "incomplete": "the endpoint answered {status}, but the rest of the answer is missing",
    "redirect": "the endpoint answered {status}, a redirect, which is not followed",
    "other_status": "the endpoint answered {status}",
    "no_answer": "the endpoint did not answer",
    "local_failure": "this service could not send the request",
    "outcomes_lost": "this service lost the outcomes of too many attempts",
    "attempts_used_up": "the maximum number of attempts was lowered, and all of them were already made",
    "response_not_processed": "a fault of this service occurred while it processed the answer",
    # The codes of attempts without a complete response (`send_failures.ERRORS`).
    "timeout": "the endpoint did not answer in time",
    "dns_error": "the host name of the endpoint could not be resolved",
    "connection_refused": "the endpoint refused the connection",
    "connection_reset": "the endpoint closed the connection without an answer",
    "network_unreachable": "the network of the endpoint could not be reached",
    "tls_error": "the encrypted connection (TLS) to the endpoint failed",
    "blocked_address": "the settings of this service forbid requests to this address",
    "protocol_error": "the answer of the endpoint is not valid HTTP",
    "too_large": "the answer of the endpoint is too large",
    "internal_error": "this service could not create the request",
    "proxy_error": "the proxy of this service (DELIVERY_PROXY) failed",
    "resolver_down": "the name servers of this service did not respond",
    "no_slot": "this service had too many open requests",
    "local_error": "this service could not open a connection",
    # The codes of deliveries that became dead, or that were put back into the queue, without a request.
    "tracker_deleted": "the tracker was deleted",
    "tracker_disabled": "the tracker was disabled for too long",
    "application_disabled": "the application was disabled for too long",
    "breaker_open": "the endpoint failed for too long",
    "erased": "the personal data of the message was erased",
    "lease_too_short": "too little time was left for the attempt",
    "interrupted": "this service stopped during the attempt",
}

#: The texts for a failure after the status line of the response had arrived, by code.
AFTER_STATUS = {
    "timeout": "the rest of the answer did not arrive in time",
    "connection_reset": "the connection ended before the rest of the answer",
    "protocol_error": "the rest of the answer is not valid HTTP",
    "too_large": "the rest of the answer is too large",
    "response_not_processed": "a fault of this service occurred while it processed the answer",
}

#: The outcome of an attempt to send a message through a gateway, by its code. For a code that is missing here, the text of
#: DELIVERY_OUTCOMES is shown.
SEND_OUTCOMES = {
    "accepted": "the gateway accepted the message",
    "rejected": "the gateway rejected the message",
    "retry": "the gateway did not accept the message",
    "doubt": "the gateway may have accepted the message",
    "unreadable": "the answer of the gateway does not say whether it accepted the message",
    "unreadable_response": "the answer of the gateway does not say whether it accepted the message",
    "throttled": "the gateway accepts no more messages for the moment",
    "gateway_error": "the gateway failed for the moment",
    "gateway_timeout": "the gateway reported a timeout",
    "temporary_error": "the gateway cannot accept the message for the moment",
    "refused_by_gateway": "the gateway did not accept the credentials or the address of the call",
    "invalid_sender": "the sender is not valid for this gateway",
    "too_long": "the text is too long for this gateway",
    "connection_lost": "the connection to the gateway was lost",
    "not_connected": "no connection to the gateway could be opened",
    "connect_timeout": "no connection to the gateway could be opened in time",
    "bind_refused": "the gateway refused the sign-in",
    "not_sent": "the connection ended before the message was sent",
    "no_answer": "the gateway did not answer",
    "timeout": "the gateway did not answer in time",
    "expired": "no gateway accepted the message in time",
    "discarded": "somebody decided not to send the message",
    "gateway_removed": "the gateway was removed",
    "unusable_gateway": "the stored settings of the gateway cannot be used",
    "lease_lost": "this service stopped during the attempt",
    "application_disabled": "the application is disabled",
    "dns_error": "the host name of the gateway could not be resolved",
    "connection_refused": "the gateway refused the connection",
    "connection_reset": "the gateway closed the connection without an answer",
    "network_unreachable": "the network of the gateway could not be reached",
    "tls_error": "the encrypted connection (TLS) to the gateway failed",
    "protocol_error": "the answer of the gateway is not valid",
    "too_large": "the answer of the gateway is too large",
}


def delivery_outcome(status: int | None, error: str | None) -> str:
    """Return the outcome of an attempt to deliver an event in words, such as "the endpoint answered 500".

    `status` is the HTTP status of the response, or None without a response. `error` is the code that the attempt stored, or None
    after a success. If both are None, return an empty text."""
    if error is None:
        return "" if status is None else f"accepted with {status}"
    text = DELIVERY_OUTCOMES.get(error, error.replace("_", " "))
    if "{status}" in text:
        return text.format(status="without a status" if status is None else status)
    if status is None:
        return text
    # A delivery that became dead without a further request, for example because its tracker was deleted, has the status of its last
    # response.
    return (
        f"the endpoint answered {status}, but {AFTER_STATUS[error]}" if error in AFTER_STATUS else f"{text} (last answer: {status})"
    )


def send_outcome(code: str) -> str:
    """Return the outcome of an attempt to send a message through a gateway in words, such as "the gateway did not answer"."""
    return SEND_OUTCOMES.get(code) or DELIVERY_OUTCOMES.get(code) or code.replace("_", " ")
