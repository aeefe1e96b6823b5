"""The pinned packages of the vendors' own clients. The scripts that use these clients are in this folder."""

from pathlib import Path

SCRIPTS = Path(__file__).parent
#: The packages that are installed for each client. Libraries that the tests already have are not installed again.
PACKAGES = {
    "infobip-6": ["infobip-api-python-client==6.0.0"],
    "infobip-5": ["infobip-api-python-client==5.1.1"],
    "infobip-4": ["infobip-api-python-client==4.0.0"],
    "infobip-3": ["infobip-api-python-client==3.0.3"],
    "infobip-sdk": ["infobip-api-python-sdk==5.0.1", "pydantic==1.10.27", "setuptools==75.8.0"],
    "py3-infobip": ["py3-infobip==0.0.4"],
    "xoxzo": ["xoxzo.cloudpy==0.4.1"],
}
#: For each client: its script, and whether the client gives the script the rewritten text of the response.
INFOBIP_CLIENTS = {
    "infobip-6": ("infobip_v5.py", False),
    "infobip-5": ("infobip_v5.py", False),
    "infobip-4": ("infobip_v4.py", False),
    "infobip-3": ("infobip_v3.py", False),
    "infobip-sdk": ("infobip_sdk.py", False),
}
