"""Orchestration: stages, flows, promotion. Knows DVC and Prefect; knows nothing of tensors.

Telemetry is switched off here because this runs before any library reads its settings.
"""

import os

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
