"""This script calls the service with the client py3-infobip. Its arguments are the base URL, an API key and a text. It prints
JSON.
"""

# mypy: ignore-errors

import json
import sys

from py3_infobip import SmsClient, SmsTextSimpleBody

base, key, text = sys.argv[1:]


def send(api_key: str, *to: str):
    return SmsClient(url=base, api_key=api_key).send_sms_text_simple(SmsTextSimpleBody(ffrom="InfoSMS", to=list(to), text=text))


sent = send(key, "41793026731", "14085550100")
sys.stdout.write(
    json.dumps(
        {
            "status": sent.status_code,
            "messages": [[one["to"], one["status"]["groupName"], one["messageId"]] for one in sent.json()["messages"]],
            "texts": [one["text"] for one in sent.json()["messages"]],
            "invalid": send(key, "12X").status_code,
            "unauthorized": send("wrong", "41793026731").status_code,
        }
    )
)
