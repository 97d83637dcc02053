"""httpx; logs in once, then lives on refresh tokens, and gives the last one back."""

import json
import os
import time

import httpx

account = {"accountId": os.environ["NOMBA_ACCOUNT_ID"]}
http = httpx.Client(base_url=os.environ["NOMBA_BASE_URL"], timeout=10)
statuses, pair, until = [], None, 0.0


def call(method, path, **options):
    reply = http.request(method, path, **options)
    statuses.append(reply.status_code)
    return reply.json()


for _ in range(int(os.environ["CALLS"])):
    if pair is None:
        credentials = {
            "grant_type": "client_credentials",
            "client_id": os.environ["NOMBA_CLIENT_ID"],
            "client_secret": os.environ["NOMBA_CLIENT_SECRET"],
        }
        pair = call("POST", "/v1/auth/token/issue", json=credentials, headers=account)["data"]
        until = time.time() + pair["expires_in"] * 0.5
    elif time.time() >= until:
        body = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        bearer = {"Authorization": f"Bearer {pair['access_token']}", **account}
        pair = call("POST", "/v1/auth/token/refresh", json=body, headers=bearer)["data"]
        until = time.time() + pair["expires_in"] * 0.5
    assert pair["businessId"] == account["accountId"]
    bearer = {"Authorization": f"Bearer {pair['access_token']}", **account}
    assert call("GET", "/v1/accounts/balance", headers=bearer)["code"] == "00"
    time.sleep(float(os.environ.get("PAUSE", "0")))
body = {"clientId": os.environ["NOMBA_CLIENT_ID"], "access_token": pair["access_token"]}
assert call("POST", "/v1/auth/token/revoke", json=body)["code"] == "00"
print(json.dumps(statuses))
