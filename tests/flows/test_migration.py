"""The way of docs/migration.md: apps that log in at Nomba are moved to the proxy, one after another."""

import aiohttp
import pytest
from processes import until

ISSUE = "/v1/auth/token/issue"


@pytest.fixture
async def app(simulator):
    """An app with Nomba's own client id and secret; `at` is its base URL."""
    switches = simulator.switches
    account = {"accountId": switches.account_id}
    login = {
        "grant_type": "client_credentials",
        "client_id": switches.client_id,
        "client_secret": switches.client_secret,
    }

    class App:
        def __init__(self, at):
            self.at = at

        async def log_in(self):
            async with http.post(self.at + ISSUE, json=login, headers=account) as reply:
                self._token = (await reply.json())["data"]["access_token"]

        async def call(self):
            headers = account | {"Authorization": f"Bearer {self._token}"}
            async with http.get(self.at + "/v1/accounts/balance", headers=headers) as reply:
                return reply.status

    async with aiohttp.ClientSession() as http:
        yield App


async def test_while_one_still_logs_in_at_nomba_those_that_were_moved_see_nothing(
    app, start_proxy, simulator
):
    proxy = await start_proxy(callers__anonymous="false")
    moved, left = app(proxy.url), app(simulator.origin)
    await moved.log_in()
    assert await moved.call() == 200
    seen = []
    for _ in range(4):
        await left.log_in()  # which ends the proxy's session
        seen.append((await moved.call(), await left.call()))  # and the proxy's login that of this
    assert seen == [(200, 401)] * 4
    [told] = await until(lambda: proxy.log.lines("session_rival"))
    assert told["level"] == "error"
    lines = await proxy.exchanges(6)
    assert [one["attempts"] for one in lines if one["kind"] == "read"] == [1, 2, 2, 2, 2]

    before = simulator.count(ISSUE)
    left.at = proxy.url
    await left.log_in()
    assert [await one.call() for one in (left, moved) * 5] == [200] * 10
    assert simulator.count(ISSUE) == before
