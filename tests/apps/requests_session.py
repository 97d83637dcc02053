"""requests, one session; the short login path, no accountId, logs in again on a 401."""

import json
import os
import time
from datetime import datetime, timezone

import requests

BASE = os.environ["NOMBA_BASE_URL"] + "/v1"
http, statuses, until = requests.Session(), [], 0.0


def log_in():
    global until
    reply = http.post(
        BASE + "/auth/token",
        json={
            "grant_type": "client_credentials",
            "client_id": os.environ["NOMBA_CLIENT_ID"],
            "client_secret": os.environ["NOMBA_CLIENT_SECRET"],
        },
        timeout=10,
    )
    statuses.append(reply.status_code)
    data = reply.json()["data"]
    ends = datetime.strptime(data["expiresAt"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    until = time.time() + (ends.timestamp() - time.time()) * 0.5
    http.headers["Authorization"] = "Bearer " + data["access_token"]


for _ in range(int(os.environ["CALLS"])):
    if time.time() >= until:
        log_in()
    reply = http.get(BASE + "/accounts/balance", timeout=10)
    statuses.append(reply.status_code)
    assert reply.json()["code"] == "00"
    time.sleep(float(os.environ.get("PAUSE", "0")))
print(json.dumps(statuses))
