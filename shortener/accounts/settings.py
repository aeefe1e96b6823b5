"""What an application may choose, with defaults: `ApplicationSettings`, and the permissions of API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shortener.urls import UrlError, parse_destination

Permission = Literal["sms.send", "sms.read", "trackers.write"]
PERMISSIONS: tuple[Permission, ...] = ("sms.send", "sms.read", "trackers.write")
Privacy = Literal["full", "short", "none"]


class ApplicationSettings(BaseModel):
    """What an application may choose; stored only where it differs from the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    click_events: Literal["first", "every"] = Field(
        "first", description="Raise a click event for each link's first click, or every."
    )
    click_id_param: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.~-]{1,32}$", description="Query parameter that carries the click id to every destination."
    )
    fallback_url: str | None = Field(None, description="Where expired links lead to; without it a short page says so (410).")
    link_ttl_days: int | None = Field(None, ge=1, le=3650, description="Longest life of a link in days; caps expires_in.")
    ip_privacy: Privacy | None = Field(None, description="How much of handsets' addresses is kept, if less than IP_PRIVACY says.")

    # The contextual rules (clicks/verdicts/contextual_rules.py). docs/reference/verdicts.md states what each rule costs.
    min_seconds_after_sent: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="Suspect hits sooner than that after SENT. Off: null."
    )
    min_seconds_after_delivered: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="Suspect hits within that of DELIVERED. Off: null."
    )
    max_recipients_per_address_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="Suspect an address that opens more recipients' links in a minute. Off: null."
    )
    all_links_within_second: bool = Field(False, description="Suspect hits that open all links of a message within a second.")
    retract_clicks: bool = Field(
        False, description="Take back clicks that later evidence calls a machine's, and tell so with click_retracted."
    )

    @field_validator("fallback_url")
    @classmethod
    def _check_fallback(cls, value: str | None) -> str | None:
        return None if value is None else checked_fallback(value)

    @property
    def uses_report_times(self) -> bool:
        """By when a message was sent or delivered."""
        return self.min_seconds_after_sent is not None or self.min_seconds_after_delivered is not None

    @property
    def uses_contextual_rules(self) -> bool:
        return self.uses_report_times or self.all_links_within_second or self.max_recipients_per_address_minute is not None


def checked_fallback(url: str) -> str:
    """As a Location header spells it. Raises ValueError."""
    try:
        return parse_destination(url).location.decode()
    except UrlError as error:
        raise ValueError(error.reason) from None
