"""This module contains sentences that explain the verdict of a hit to readers who do not know the click rules."""
# Tested by tests/portal/test_pages.py

from __future__ import annotations

#: The explanation of each click rule. It is the end of a sentence that begins with "Not counted as a click:" or "Counted as a
#: click:".
REASONS = {
    "browser": "the request looks like that of a browser that a person uses",
    "confirmed": "the visitor pressed the button of the confirmation page",
    "awaiting_confirmation": "the visitor saw the confirmation page and did not press its button",
    "method": "the request only asked whether the link exists (not a GET request)",
    "prefetch": "a browser or an app loaded the link in advance, before anybody opened it",
    "empty_agent": "the request has no User-Agent header, so the program is unknown",
    "link_preview": "a messaging app fetched a preview of the link",
    "crawler": "the request came from a known crawler or another program that fetches pages",
    "program": "by its name, the client is a program such as a monitor or a test tool",
    "no_browser": "the User-Agent header does not name a browser",
    "old_desktop": "the client uses the name of a desktop browser that is so old that only preview services still use it",
    "soon_after_sent": "the request came sooner after sending than a person can react",
    "soon_after_delivered": "the request came sooner after the delivery of the message than a person can react",
    "before_sent": "the message had not been reported as sent at that time",
    "many_recipients": "one address opened the links of too many recipients within a minute",
    "all_links_at_once": "one address opened every link of the message within a second",
    "hosting_network": "the address belongs to a data centre",
}
#: A short name of each click rule, for the filter field and for tables.
RULE_NAMES = {
    "browser": "Opened in a browser",
    "confirmed": "Confirmed with the button",
    "awaiting_confirmation": "Confirmation not pressed",
    "method": "Check whether the link exists",
    "prefetch": "Loaded in advance",
    "empty_agent": "Client without a name",
    "link_preview": "Preview of a messaging app",
    "crawler": "Crawler",
    "program": "Program",
    "no_browser": "Client that is no browser",
    "old_desktop": "Very old desktop browser",
    "soon_after_sent": "Too soon after sending",
    "soon_after_delivered": "Too soon after the delivery",
    "before_sent": "Before the message was sent",
    "many_recipients": "One address, many recipients",
    "all_links_at_once": "All links at once",
    "hosting_network": "Data centre",
}
RESULTS = {
    "clicks": ("Click", "good"),
    "suspected_hits": ("Suspected", "warn"),
    "ignored_hits": ("Ignored", ""),
    "late_hits": ("After expiry", ""),
    None: ("Link disabled", ""),
}


def explain(rule: str, metric: str | None) -> str:
    """Return one sentence that explains the verdict of a hit. `metric` is the figure that counts the hit; None if the link was
    disabled at the time of the hit."""
    reason = REASONS.get(rule, f"the rule {rule} matched")
    if metric == "clicks":
        return f"Counted as a click: {reason}."
    if metric == "late_hits":
        return "Not counted as a click: the link had expired."
    if metric is None:
        return "Not counted: the link was disabled at that time."
    return f"Not counted as a click: {reason}."
