"""This script calls the service with Xoxzo's package xoxzo.cloudpy. Its arguments are the base URL, the application id, an API
key and a text. It prints JSON.
"""

# mypy: ignore-errors

import json
import sys
import time

from xoxzo.cloudpy import XoxzoClient

base, application, key, text = sys.argv[1:]
client = XoxzoClient(sid=application, auth_token=key, api_host=base)
sent = client.send_sms(text, "+818012345678", "Sender", callbackurl="https://customer.example/reports")
msgid = sent.messages[0]["msgid"]

deadline = time.monotonic() + 30
status = client.get_sms_delivery_status(msgid).message
while status["status"] != "DELIVERED" and time.monotonic() < deadline:
    time.sleep(0.1)  # wait a moment, then check the condition again
    status = client.get_sms_delivery_status(msgid).message
today = time.strftime("%Y-%m-%d", time.gmtime())
invalid = client.send_sms(text, "+8108", "Sender")
stranger = XoxzoClient(sid=application, auth_token="wrong", api_host=base).get_sent_sms_list()

sys.stdout.write(
    json.dumps(
        {
            "sent": sent.messages[0],
            "errors": sent.errors,
            "status": status,
            "lists": {
                condition: [row["msgid"] for row in client.get_sent_sms_list(condition).messages]
                for condition in (None, f">={today}", f"<={today}", f"={today}", ">2999-01-01", "<2000-01-01")
            },
            "invalid": [invalid.errors, invalid.message["recipient"]],
            "unauthorized": [stranger.errors, "detail" in stranger.message],
            "unknown": client.get_sms_delivery_status("unknown").errors,
        }
    )
)
