"""This module contains the status words of affiliate networks, the disposition that each word means, and the categories of
conversions.

docs/reference/conversions.md contains the same table. Upper and lower case, spaces, hyphens and underscores in a status word make
no difference. An unknown word has no disposition.
"""
# Tested by tests/conversions/test_status_words.py

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Disposition = Literal["positive", "negative"]
Category = Literal["positive", "negative", "pending", "other"]

#: The categories by which conversions are counted. A conversion is in `other` if it has no disposition and its status word does
#: not mean pending.
CATEGORIES: tuple[Category, ...] = ("positive", "negative", "pending", "other")

WORDS: Mapping[Literal["positive", "negative", "pending"], Sequence[str]] = {
    "positive": (
        "positive",
        "approved",
        "approve",
        "accepted",
        "confirmed",
        "confirm",
        "paid",
        "payed",
        "sale",
        "sold",
        "success",
        "successful",
        "succeeded",
        "completed",
        "complete",
        "captured",
        "settled",
        "valid",
        "verified",
        "converted",
        "deposit",
        "ftd",
        "rebill",
        "upsell",
        "won",
        "ok",
    ),
    "negative": (
        "negative",
        "rejected",
        "reject",
        "declined",
        "decline",
        "denied",
        "refused",
        "reversed",
        "reversal",
        "refund",
        "refunded",
        "chargeback",
        "chargedback",
        "cancelled",
        "canceled",
        "cancel",
        "void",
        "voided",
        "trash",
        "trashed",
        "fraud",
        "fraudulent",
        "invalid",
        "failed",
        "expired",
        "duplicate",
        "test",
        "spam",
        "returned",
        "unapproved",
        "deleted",
        "lost",
    ),
    "pending": (
        "pending",
        "hold",
        "onhold",
        "held",
        "lead",
        "registered",
        "registration",
        "signup",
        "new",
        "open",
        "waiting",
        "wait",
        "processing",
        "inprogress",
        "review",
        "inreview",
        "created",
        "submitted",
        "unconfirmed",
        "trial",
    ),
}

_CLASSES = {word: name for name, words in WORDS.items() for word in words}
_SEPARATORS = re.compile(r"[\s_-]+")


def classify(status: str | None) -> Literal["positive", "negative", "pending"] | None:
    """Return the meaning of a status word: positive, negative or pending. Return None for an unknown word and for None."""
    return None if status is None else _CLASSES.get(_SEPARATORS.sub("", status).casefold())


def derive_disposition(status: str | None) -> Disposition | None:
    """Return the disposition that a status word means. Return None if the word means pending or is unknown."""
    word = classify(status)
    return None if word == "pending" else word


def category_of(status: str | None, disposition: str | None) -> Category:
    """Return the category by which a conversion is counted. If disposition and status word contradict each other, the disposition
    decides."""
    if disposition == "positive":
        return "positive"
    if disposition == "negative":
        return "negative"
    return "pending" if classify(status) == "pending" else "other"


def is_revenue(counted_as: str | None) -> bool:
    """Return whether the value of a conversion belongs to the sums of values. It does if the conversion is neither negative nor
    pending.

    `counted_as` is the category and the action, such as "positive:sale"; None for conversions of an older version."""
    return counted_as is None or counted_as.startswith(("positive:", "other:"))
