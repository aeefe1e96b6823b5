"""Tests of the parts that all versions of Infobip's send call share."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from shortener.web.vendors.infobip import InfobipText
from shortener.web.vendors.infobip_fields import FieldPath, accepted_fields, rejected_fields, with_plus
from shortener.web.vendors.infobip_v3 import InfobipWebhooks


def test_errors_name_fields_as_the_request_does() -> None:
    path = FieldPath("messages.2", "options.domain", {"body": "content.text"})
    assert path("body", None) == "messages.2.content.text"
    assert path("from", None) == "messages.2.from"
    assert path("domain", None) == "options.domain"
    assert path("to", 1) == "messages.2.destinations.1.to"
    assert path("message_id", 1) == "messages.2.destinations.1.messageId"


@pytest.mark.parametrize(
    ("number", "shown"), [("41793026731", "+41793026731"), ("+41793026731", "+41793026731"), ("0793026731", "0793026731")]
)
def test_only_a_number_in_international_form_gets_a_plus(number: str, shown: str) -> None:
    assert with_plus(number) == shown


def test_a_rejected_recipient_and_a_rewritten_message_have_the_same_fields_in_the_response() -> None:
    rejected = rejected_fields({"error_code": "OPTED_OUT", "message_id": "m-1", "reason": "has opted out"})
    message = {"message_id": "m-2", "body": "text", "links": [], "encoding": "GSM-7", "warnings": ["one"], "sent": True}
    accepted = accepted_fields(message, ["two"])
    assert rejected is not None
    assert rejected.keys() == accepted.keys()
    assert (rejected["sent"], accepted["sent"], accepted["warnings"]) == (False, True, ["one", "two"])
    assert rejected_fields(message) is None


@pytest.mark.parametrize(
    ("model", "fields"), [(InfobipText, {"destinations": [{"to": "41793026731"}], "text": "x"}), (InfobipWebhooks, {})]
)
def test_all_versions_accept_the_same_data_of_the_caller(model: type[BaseModel], fields: dict[str, object]) -> None:
    assert model.model_validate({**fields, "callbackData": "x" * 4000}).model_dump()["callback_data"] == "x" * 4000
    assert model.model_validate({**fields, "callbackData": None}).model_dump()["callback_data"] is None
    with pytest.raises(ValidationError):
        model.model_validate({**fields, "callbackData": "x" * 5000})
