"""Standard library only, a thread pool over one cached token; camelCase, slash, bare token."""

import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

BASE = os.environ["NOMBA_BASE_URL"]
lock, cached = threading.Lock(), {"token": None, "until": 0.0}
statuses = []


def call(path, body=None, **headers):
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(BASE + path, data, headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        statuses.append(reply.status)
        return json.load(reply)


def token():
    with lock:
        if time.time() >= cached["until"]:
            data = call(
                "/v1/auth/token/issue/",
                {
                    "grant_type": "client_credentials",
                    "clientId": os.environ["NOMBA_CLIENT_ID"],
                    "clientSecret": os.environ["NOMBA_CLIENT_SECRET"],
                },
                accountId=os.environ["NOMBA_ACCOUNT_ID"],
            )["data"]
            cached.update(token=data["access_token"], until=time.time() + data["expiresIn"] * 0.6)
        return cached["token"]


def work(_):
    headers = {"Authorization": token(), "Accountid": os.environ["NOMBA_ACCOUNT_ID"]}
    assert call("/v1/accounts/balance", **headers)["code"] == "00"
    time.sleep(float(os.environ.get("PAUSE", "0")))


with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(int(os.environ["CALLS"]))))
print(json.dumps(statuses))
