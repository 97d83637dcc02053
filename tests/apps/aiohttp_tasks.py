"""aiohttp, several tasks, a login for each of them and for every call."""

import asyncio
import json
import os

import aiohttp

statuses = []


async def work(http):
    login = {
        "grant_type": "client_credentials",
        "client_id": os.environ["NOMBA_CLIENT_ID"],
        "clientSecret": os.environ["NOMBA_CLIENT_SECRET"],
    }
    account = {"accountid": os.environ["NOMBA_ACCOUNT_ID"]}
    async with http.post("/v1/auth/token/issue", json=login, headers=account) as reply:
        statuses.append(reply.status)
        token = (await reply.json())["data"]["access_token"]
    bearer = account | {"Authorization": f"Bearer {token}"}
    async with http.get("/v1/accounts/balance", headers=bearer) as reply:
        statuses.append(reply.status)
        assert (await reply.json())["code"] == "00"
    await asyncio.sleep(float(os.environ.get("PAUSE", "0")))


async def main():
    async with aiohttp.ClientSession(os.environ["NOMBA_BASE_URL"]) as http:
        left = int(os.environ["CALLS"])
        while left > 0:
            await asyncio.gather(*(work(http) for _ in range(min(4, left))))
            left -= 4
    print(json.dumps(statuses))


asyncio.run(main())
