"""This module contains texts that describe the outcomes of two kinds of attempts: to deliver events to trackers, and to send
messages through gateways.

The API and the database contain short codes such as `other_status`. The pages of the portal show the texts of this module
instead. If a code has no text here, the pages show the code with spaces instead of underscores.
"""
# Tested by tests/portal/test_outcome_texts.py

from __future__ import annotations

from shortener.model import Topic

#: The labels of single events, by topic.
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

#: The texts for deliveries that did not succeed, by the code of the outcome. `{status}` is the HTTP status of the response.
DELIVERY_OUTCOMES = {
    # codes of attempts that got a response (`outcomes.OUTCOME_TABLE`)
    "refused_in_body": "the endpoint responded with {status}, but without the text that means success",
    "gone": "the endpoint responded with {status}: it accepts no more events",
    "rate_limited": "the endpoint responded with {status}: too many requests",
    "throttled": "the endpoint responded with {status}: it is unavailable for the moment",
    "form_refused": "the endpoint responded with {status}: it does not accept this kind of request",
    "incomplete": "the endpoint responded with {status}, but the rest of the response is missing",
    "redirect": "the endpoint responded with {status}, a redirect, which is not followed",
    "other_status": "the endpoint responded with {status}",
    "no_answer": "the endpoint did not respond",
    "local_failure": "this service could not send the request",
    "outcomes_lost": "this service lost the outcomes of too many attempts",
    "attempts_used_up": "the maximum number of attempts was lowered to a number that was already reached",
    "response_not_processed": "a fault of this service occurred while it processed the response",
    # codes of attempts that got no complete response (`send_failures.ERRORS`)
    "timeout": "the endpoint did not respond in time",
    "dns_error": "the host name of the endpoint could not be resolved",
    "connection_refused": "the endpoint refused the connection",
    "connection_reset": "the endpoint closed the connection without a response",
    "network_unreachable": "the network of the endpoint could not be reached",
    "tls_error": "the encrypted connection (TLS) to the endpoint failed",
    "blocked_address": "the settings of this service forbid requests to this address",
    "protocol_error": "the response of the endpoint is not valid HTTP",
    "too_large": "the response of the endpoint is too large",
    "internal_error": "this service could not create the request",
    "proxy_error": "the proxy of this service (DELIVERY_PROXY) failed",
    "resolver_down": "the name servers of this service did not respond",
    "no_slot": "this service had too many open requests",
    "local_error": "this service could not open a connection",
    # codes of deliveries that became dead, or were put back into the queue, although no request was sent
    "tracker_deleted": "the tracker was deleted",
    "tracker_disabled": "the tracker was disabled for too long",
    "application_disabled": "the application was disabled for too long",
    "breaker_open": "the endpoint failed for too long",
    "erased": "the personal data of the message was erased",
    "lease_too_short": "too little time was left for the attempt",
    "interrupted": "this service stopped during the attempt",
}

#: The texts for attempts that failed after the status line of the response had arrived, by the code of the outcome.
AFTER_STATUS = {
    "timeout": "the rest of the response did not arrive in time",
    "connection_reset": "the connection ended before the rest of the response",
    "protocol_error": "the rest of the response is not valid HTTP",
    "too_large": "the rest of the response is too large",
    "response_not_processed": "a fault of this service occurred while it processed the response",
}

#: The texts for attempts to send a message through a gateway, by the code of the outcome. For other codes, the text of
#: DELIVERY_OUTCOMES is shown.
SEND_OUTCOMES = {
    "accepted": "the gateway accepted the message",
    "rejected": "the gateway rejected the message",
    "retry": "the gateway did not accept the message",
    "doubt": "the gateway may have accepted the message",
    "unreadable": "the response of the gateway does not say whether it accepted the message",
    "unreadable_response": "the response of the gateway does not say whether it accepted the message",
    "throttled": "the gateway accepts no more messages for the moment",
    "gateway_error": "the gateway failed temporarily",
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
    "no_answer": "the gateway did not respond",
    "timeout": "the gateway did not respond in time",
    "expired": "no gateway accepted the message in time",
    "discarded": "somebody decided not to send the message",
    "gateway_removed": "the gateway was removed",
    "unusable_gateway": "the stored settings of the gateway cannot be used",
    "lease_lost": "this service stopped during the attempt",
    "application_disabled": "the application is disabled",
    "dns_error": "the host name of the gateway could not be resolved",
    "connection_refused": "the gateway refused the connection",
    "connection_reset": "the gateway closed the connection without a response",
    "network_unreachable": "the network of the gateway could not be reached",
    "tls_error": "the encrypted connection (TLS) to the gateway failed",
    "protocol_error": "the response of the gateway is not valid",
    "too_large": "the response of the gateway is too large",
}


def delivery_outcome(status: int | None, error: str | None) -> str:
    """Return a text for the outcome of an attempt to deliver an event, such as "the endpoint responded with 500".

    `status` is the HTTP status of the response, or None without a response. `error` is the code that the attempt stored, or None
    after a success. If both are None, return an empty text."""
    if error is None:
        return "" if status is None else f"accepted with {status}"
    text = DELIVERY_OUTCOMES.get(error, error.replace("_", " "))
    if "{status}" in text:
        return text.format(status="without a status" if status is None else status)
    if status is None:
        return text
    # The delivery became dead without a further request, for example because its tracker was deleted. Its status is the status of
    # the last response.
    return (
        f"the endpoint responded with {status}, but {AFTER_STATUS[error]}"
        if error in AFTER_STATUS
        else f"{text} (last response: {status})"
    )


def send_outcome(code: str) -> str:
    """Return a text for the outcome of an attempt to send a message through a gateway, such as "the gateway did not respond"."""
    return SEND_OUTCOMES.get(code) or DELIVERY_OUTCOMES.get(code) or code.replace("_", " ")
