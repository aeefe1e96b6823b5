"""This module defines the settings of an application, and the permissions of API keys."""

# Tested by tests/accounts/test_administration.py

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any, Literal, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shortener.macros import macro_problems, url_warnings
from shortener.urls import DESTINATION_PLACEHOLDERS, FORBIDDEN_SCHEMES, SCHEME, UrlError, parse_destination, trim_url

log = structlog.get_logger(__name__)

Permission = Literal[
    "sms.send", "sms.read", "trackers.read", "trackers.write", "links.write", "privacy.erase", "privacy.reveal", "admin"
]
#: All permissions. The first API key of an application has all of them.
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
#: The permissions of a new API key if the request names none.
DEFAULT_PERMISSIONS: tuple[Permission, ...] = ("sms.send", "sms.read")
Privacy = Literal["full", "short", "none"]


class ApplicationSettings(BaseModel):
    """The settings of an application. The database stores only the values that differ from the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    click_events: Literal["first", "every"] = Field(
        "first",
        description="Which clicks create a click event: the first click on each link (first), or every click (every). Links that "
        'were created while the value was "every" create an event for every click even if the value is "first" now.',
    )
    click_conversion: Literal["scg", "all", "off"] = Field(
        "scg",
        description="Trackers that also receive the first click of a message as a conversion event (action clickthru): scg "
        "(trackers of the format scg), all, or off (none). The trackers must also subscribe to conversion events. Statistics do "
        "not count the click as a conversion.",
    )
    click_id_param: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.~-]{1,32}$",
        description="Name of the query parameter that each redirect adds to the destination URL. Its value is the click id. "
        "null: no parameter is added.",
    )
    track: Literal["directives", "first_url", "all_urls"] = Field(
        "directives",
        description="Which URLs of a message are replaced by short links if the request does not contain the field `track`.",
    )
    extra_schemes: tuple[str, ...] = Field(
        (),
        max_length=32,
        description="Schemes of links into apps that destinations and fallbacks may have besides http and https, such as myapp. "
        "Schemes that run code or open local data are rejected.",
    )
    strict_destinations: bool = Field(
        False,
        description="true: a destination or fallback with a placeholder that is not filled in, such as {{message_id}}, is "
        "rejected. false: the response contains a warning.",
    )
    fallback_url: str | None = Field(
        None, description="URL to which expired links redirect. null: an expired link returns a short page with status 410."
    )
    allow_shared_host: bool = Field(
        False,
        description="true: if no own domain of the application can be used, new links begin with BASE_URL. false: the rewrite "
        "fails with NO_USABLE_DOMAIN. Applications that never had an own domain always use BASE_URL.",
    )
    link_ttl_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        description="Maximum lifetime of a link of this application in days; it limits expires_in. null: no limit.",
    )
    ip_privacy: Privacy | None = Field(
        None,
        description="How much of a recipient's IP address is stored: full, short or none. If IP_PRIVACY of the installation stores "
        "less, IP_PRIVACY applies. null: IP_PRIVACY applies.",
    )

    confirm_clicks: Literal["off", "suspicious", "always"] = Field(
        "off",
        description="When a page with one button is shown instead of the redirect. Only a press of the button counts as a click. "
        "off: never. suspicious: for hits that probably come from a program. always: for every hit.",
    )

    # The contextual rules (clicks/verdicts/contextual_rules.py). docs/reference/verdicts.md describes the disadvantage of each
    # rule.
    min_seconds_after_sent: float | None = Field(
        None,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Hits on a link before its message was SENT, or less than this number of seconds after it, are suspected of "
        "automation. null: off.",
    )
    min_seconds_after_delivered: float | None = Field(
        None,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Hits on a link less than this number of seconds before or after its message was DELIVERED are suspected of "
        "automation. null: off.",
    )
    sender_rules: Literal["warn", "reject"] = Field(
        "warn",
        description="What happens to a message if carriers would reject its sender id: because of the format of the sender id, or "
        "because of a rule of the recipient's country. warn: the response contains a warning. reject: the request is rejected "
        "with SENDER_NOT_ALLOWED.",
    )
    suspect_before_sent: bool = Field(
        False,
        description="true: hits on a message that was never reported SENT, DELIVERED or READ are suspected. They are classified "
        "again when the report arrives.",
    )
    max_recipients_per_address_minute: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Hits of an IP address that opens links of more recipients than this in a minute are suspected of "
        "automation. null: off.",
    )
    all_links_within_second: bool = Field(
        False,
        description="true: hits that open all links of a message within one second are suspected of automation. false: such hits "
        "are not suspected.",
    )
    retract_clicks: bool = Field(
        False,
        description="true: if a click is later classified as automated, it no longer counts, and a click_retracted event follows.",
    )

    @field_validator("extra_schemes", mode="before")
    @classmethod
    def _split_schemes(cls, value: Any) -> Any:
        # The command line passes a list as one text, with commas between the values.
        return [one for one in re.split(r"[\s,]+", value) if one] if isinstance(value, str) else value

    @field_validator("extra_schemes")
    @classmethod
    def _check_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        schemes = [scheme.lower().removesuffix("://").removesuffix(":") for scheme in value]
        for scheme in schemes:
            if SCHEME.fullmatch(scheme) is None:
                raise ValueError(f"{scheme[:40]!r} must be a scheme such as myapp: letters, digits, +, - and .")
            if scheme in FORBIDDEN_SCHEMES:
                raise ValueError(f"{scheme!r} is not permitted, because such links run code or open local data")
        return tuple(dict.fromkeys(schemes))

    @field_validator("fallback_url")
    @classmethod
    def _check_fallback(cls, value: str | None) -> str | None:
        # Any scheme is accepted here. The scheme is compared with `extra_schemes` when a change is stored, because a change may
        # contain only one of the two settings.
        url = None if value is None else trim_url(value)
        return None if url is None else parse_fallback_url(url, {url.partition(":")[0].lower()})

    @property
    def uses_report_times(self) -> bool:
        """Whether an enabled rule needs the time at which a message was sent or delivered."""
        return self.suspect_before_sent or self.min_seconds_after_sent is not None or self.min_seconds_after_delivered is not None

    @property
    def uses_contextual_rules(self) -> bool:
        """Whether at least one contextual rule is on."""
        return self.uses_report_times or self.all_links_within_second or self.max_recipients_per_address_minute is not None


def from_stored(stored: Mapping[str, Any]) -> ApplicationSettings:
    """Return the settings of an application from their stored form. If this release does not know a setting or a value, the
    default is used: a newer node may have stored it during an upgrade."""
    known = {name: value for name, value in stored.items() if name in ApplicationSettings.model_fields}
    try:
        return ApplicationSettings(**known)
    except ValidationError as error:
        unusable = sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]})
        log.warning("stored_settings_ignored", settings=unusable)
        return ApplicationSettings(**{name: value for name, value in known.items() if name not in unusable})


def merge_stored(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `stored` after `changes`, in the form for the database. Raise ValidationError if a changed setting is unknown or
    invalid.

    Settings that only a newer release knows stay unchanged, so that a change on this node does not delete them."""
    usable = from_stored(stored).model_dump(exclude_unset=True)
    merged = ApplicationSettings(**(usable | dict(changes))).model_dump(exclude_defaults=True)
    kept = {name: value for name, value in stored.items() if name not in usable and name not in changes}
    return kept | merged


def parse_fallback_url(url: str, extra_schemes: Container[str] = ()) -> str:
    """Return a fallback URL in the form of a Location header. Raise ValueError with the reason if it is invalid."""
    try:
        return parse_destination(url, extra_schemes).location.decode()
    except UrlError as error:
        raise ValueError(error.reason) from None


def fallback_warnings(url: str | None) -> list[str]:
    """Return the warnings about the fallback URL of an application or a domain: it contains `&amp;`, or macros that the service
    will not replace."""
    return url_warnings(url, DESTINATION_PLACEHOLDERS) if url else []


def fallback_problems(url: str | None) -> list[str]:
    """Return one text for each macro in the fallback URL of an application or a domain that the service will not replace."""
    return macro_problems(url, DESTINATION_PLACEHOLDERS) if url else []
