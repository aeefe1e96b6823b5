"""This script calls the service with the package infobip-api-python-sdk. Its arguments are the base URL, an API key and a text.
It prints JSON.
"""

# mypy: ignore-errors

import json
import sys
import time

from infobip_channels.sms.channel import SMSChannel

base, key, text = sys.argv[1:]
channel = SMSChannel.from_auth_params({"base_url": base, "api_key": key})


def request(to: str, **options) -> dict:
    return {"messages": [{"from": "InfoSMS", "destinations": [{"to": to}], "text": text}], **options}


sent = channel.send_sms_message(
    request("41793026731", tracking={"track": "SMS", "type": "ONE_TIME_PIN"}, urlOptions={"shortenUrl": True})
)
message_id = sent.messages[0].message_id

deadline = time.monotonic() + 30
found = []
while not found and time.monotonic() < deadline:
    found = channel.get_outbound_sms_delivery_reports({"message_id": message_id}).results
    time.sleep(0.1)  # wait a moment, then check the condition again
log = channel.get_outbound_sms_message_logs({"message_id": [message_id]})
preview = channel.preview_sms_message({"text": text})
error = channel.send_sms_message(request("12345"))
stranger = SMSChannel.from_auth_params({"base_url": base, "api_key": "wrong"})

sys.stdout.write(
    json.dumps(
        {
            "bulk_id": sent.bulk_id,
            "message_id": message_id,
            "status": sent.messages[0].status.name,
            "segments": sent.raw_response.json()["messages"][0]["smsCount"],
            "text_is_visible": hasattr(sent.messages[0], "text"),
            "report": [found[0].message_id, found[0].status.name, found[0].bulk_id, "InfoSMS"],
            "log": [log.results[0].message_id, log.results[0].status.group_name, log.results[0].to],
            "preview": [preview.previews[0].text_preview, preview.previews[0].message_count],
            "error": [int(error.status_code), error.request_error.service_exception.message_id],
            "unauthorized": int(stranger.get_outbound_sms_message_logs().status_code),
        }
    )
)
