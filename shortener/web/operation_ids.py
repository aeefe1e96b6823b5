"""The operation ids of the OpenAPI document. Generators of clients use them as names of methods: `list_trackers`, `update_link`.

An id consists of a verb and a noun, which are derived from the HTTP method and the path. For vendors' paths, and for paths that
do not follow this rule, `_NAMES` contains the ids.
"""
# Tested by tests/web/test_openapi.py

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMES: Mapping[tuple[str, str], str] = {
    ("POST", "/api/v1/rewrite"): "rewrite",
    ("POST", "/api/v1/rewrite/preview"): "preview_rewrite",
    ("POST", "/api/v1/sms/send"): "send_message",
    ("POST", "/api/v1/sms/inbound"): "report_inbound_message",
    ("POST", "/api/v1/sms/status"): "report_delivery",
    ("GET", "/api/v1/sms/status/{message_id}"): "get_message",
    ("GET", "/api/v1/sms/messages"): "list_messages",
    ("GET", "/api/v1/sms/messages/unified"): "list_unified_messages",
    ("GET", "/api/v1/sms/messages/unified/export"): "export_messages",
    ("GET", "/api/v1/sms/stats"): "get_statistics",
    ("GET", "/api/v1/sms/stats/daily"): "get_statistics_by_day",
    ("GET", "/api/v1/balance"): "get_balance",
    ("GET", "/api/v1/links/{code}.csv"): "export_link",
    ("GET", "/api/v1/events/{event_id}.csv"): "export_event",
    ("POST", "/api/v1/opt-outs"): "add_opt_out",
    ("DELETE", "/api/v1/opt-outs/{number}"): "remove_opt_out",
    ("GET", "/api/v1/gateways/reports/{report_key}"): "receive_gateway_report_without_reference_by_get",
    ("POST", "/api/v1/gateways/reports/{report_key}"): "receive_gateway_report_without_reference",
    ("GET", "/api/v1/gateways/reports/{report_key}/{reference}"): "receive_gateway_report_by_get",
    ("POST", "/api/v1/gateways/reports/{report_key}/{reference}"): "receive_gateway_report",
    ("GET", "/api/v1/application"): "get_application",
    ("PATCH", "/api/v1/application"): "update_application",
    ("POST", "/api/v1/application/callback-secret"): "rotate_callback_secret",
    ("POST", "/api/v1/tokens/rotate"): "rotate_token",
    ("DELETE", "/api/v1/keys/{api_key_id}"): "revoke_key",
    ("POST", "/api/v1/deliveries/replay"): "replay_deliveries",
    ("POST", "/api/v1/trackers/{tracker_id}/replay"): "replay_tracker",
    ("GET", "/api/v1/trackers/{tracker_id}/deliveries"): "list_tracker_deliveries",
    ("POST", "/api/v1/links/update"): "update_links",
    ("GET", "/api/v1/links/updates"): "list_link_updates",
    ("GET", "/api/v1/links/updates/{update_id}"): "get_link_update",
    ("POST", "/api/v1/links/updates/{update_id}/stop"): "stop_link_update",
    ("GET", "/api/v1/conversions/refused"): "list_refused_conversions",
    ("GET", "/api/v1/conversions/refused.csv"): "export_refused_conversions",
    ("POST", "/api/v1/blocked-hosts"): "block_host",
    ("DELETE", "/api/v1/blocked-hosts/{host}"): "unblock_host",
    ("POST", "/api/v1/erasures"): "erase_personal_data",
    ("GET", "/api/v1/track"): "track_conversion_by_get",
    ("POST", "/api/v1/track"): "track_conversion",
    ("GET", "/api/v1/callback/action"): "report_conversion_by_get",
    ("POST", "/api/v1/callback/action"): "report_conversion",
    ("GET", "/api/v1/action/track"): "track_action_by_get",
    ("POST", "/api/v1/action/track"): "track_action",
    ("GET", "/action"): "report_action_by_get",
    ("POST", "/action"): "report_action",
    ("GET", "/api/v1/postback/{postback_key}"): "report_postback_by_get",
    ("POST", "/api/v1/postback/{postback_key}"): "report_postback",
    ("GET", "/healthz"): "check_liveness",
    ("GET", "/readyz"): "check_readiness",
    ("GET", "/metrics"): "get_metrics",
    ("GET", "/internal/domain-check"): "check_domain",
    ("GET", "/openapi.json"): "get_openapi_document",
    ("GET", "/docs"): "get_documentation",
    ("GET", "/{code}"): "follow_link",
    ("POST", "/sms/messages/"): "send_xoxzo_message",
    ("GET", "/sms/messages/"): "list_xoxzo_messages",
    ("GET", "/sms/messages/{msgid}/"): "get_xoxzo_message",
    ("GET", "/sms/messages/{msgid}"): "get_xoxzo_message_without_slash",
    ("POST", "/sms/1/text/advanced"): "send_infobip_messages_v1",
    ("POST", "/sms/2/text/advanced"): "send_infobip_messages_v2",
    **{("POST", f"/sms/{n}/text/single"): f"send_infobip_message_v{n}" for n in (1, 2)},
    **{("POST", f"/sms/{n}/text/multi"): f"send_infobip_texts_v{n}" for n in (1, 2)},
    ("POST", "/sms/3/messages"): "send_infobip_messages_v3",
    **{("GET", f"/sms/{n}/reports"): f"list_infobip_reports_v{n}" for n in (1, 2, 3)},
    **{("GET", f"/sms/{n}/logs"): f"list_infobip_logs_v{n}" for n in (1, 2, 3)},
    ("POST", "/sms/1/preview"): "preview_infobip_message",
    ("POST", "/ct/1/log/end/{messageId}"): "end_conversion_process",
    ("GET", "/ct/1/processes/{processKey}/conversionrate"): "get_conversion_rate",
    ("POST", "/scg-external-api/api/v1/messaging/message_requests"): "create_syniverse_message_request",
}
_VERBS: Mapping[str, str] = {"GET": "list", "POST": "create", "PATCH": "update", "PUT": "replace", "DELETE": "delete"}


def operation_id(method: str, path: str) -> str:
    """Return the name of an operation. `path` has the syntax of OpenAPI, for example /api/v1/trackers/{tracker_id}."""
    if (name := _NAMES.get((method, path))) is not None:
        return name
    parts = [part for part in path.removeprefix("/api/v1/").strip("/").split("/") if part]
    nouns = [re.sub(r"\W+", "_", part) for part in parts if not part.startswith("{")]
    # If a POST path has a segment after a parameter, this segment is the verb, as in /trackers/{tracker_id}/test.
    if len(parts) > 2 and parts[-2].startswith("{") and method == "POST" and len(nouns) > 1:
        return f"{nouns[-1]}_{_singular('_'.join(nouns[:-1]))}"
    is_item = parts[-1].startswith("{")
    verb = "get" if is_item and method == "GET" else _VERBS[method]
    if nouns[-1].endswith("_csv"):
        verb, nouns[-1] = "export", nouns[-1].removesuffix("_csv")
    if "stats" in nouns:
        return "_".join(["get", "statistics", *nouns[nouns.index("stats") + 1 :]])
    noun = "_".join(nouns)
    return f"{verb}_{noun if verb in ('list', 'export') else _singular(noun)}"


def _singular(noun: str) -> str:
    """Return the singular of a plural noun: "delivery" for "deliveries", "link" for "links"."""
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun
