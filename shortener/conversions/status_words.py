"""The disposition that follows from a status word, and the category under which a conversion is counted.

Networks report the state of a conversion as a word. This table is the one in docs/reference/conversions.md. A word is compared
without case, spaces, hyphens and underscores. An unknown word has no disposition.
"""
# Tested by tests/conversions/test_status_words.py

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Disposition = Literal["positive", "negative"]
Category = Literal["positive", "negative", "pending", "other"]

#: The categories of conversions. `other`: no disposition, and the status is not a word for a pending conversion.
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
    """Return what a status word says, None for an unknown word and without a word."""
    return None if status is None else _CLASSES.get(_SEPARATORS.sub("", status).casefold())


def derive_disposition(status: str | None) -> Disposition | None:
    """Return the disposition that follows from a status word, None if it is pending or unknown."""
    word = classify(status)
    return None if word == "pending" else word


def category_of(status: str | None, disposition: str | None) -> Category:
    """Return the category under which a conversion is counted. The disposition takes precedence over the status word."""
    if disposition == "positive":
        return "positive"
    if disposition == "negative":
        return "negative"
    return "pending" if classify(status) == "pending" else "other"
