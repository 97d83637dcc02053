"""Apps written for Nomba itself, each in its own way, with nothing changed but the base URL."""

import asyncio

import pytest
from harness import served
from playing import RUN, missing, play


def need(app):
    if reason := missing(app):
        pytest.skip(reason)


@pytest.fixture
def owner(simulator):
    switches = simulator.switches
    return {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
    }


@pytest.mark.parametrize("app", RUN)
async def test_an_app_works_with_its_base_url_changed(start_proxy, simulator, owner, app):
    need(app)
    proxy = await start_proxy(callers__anonymous="false")
    statuses = await play(proxy.url, app, calls=4, **owner)
    assert set(statuses) == {200}
    assert simulator.count("/v1/accounts/balance") == 4
    assert simulator.count("/v1/auth/token/issue") == 1  # the proxy's own
    callers = {line["caller"] for line in await proxy.exchanges(len(statuses))}
    assert callers == {"owner"}


async def test_an_app_and_the_simulator_are_given_the_same_environment():
    """What a developer has in its `.env` works against the simulator too."""
    env = {
        "NOMBA_CLIENT_ID": "the-apps-own",
        "NOMBA_CLIENT_SECRET": "the-apps-own-secret",
        "NOMBA_ACCOUNT_ID": "the-apps-account",
    }
    more = ("--simulate", "--set", "callers.anonymous=false")
    async with served(*more, **env) as proxy:
        url = f"http://{proxy.address}"
        assert set(await play(url, "httpx_refresh.py", calls=2, **env)) == {200}


@pytest.mark.parametrize(
    "pair",
    [
        ("urllib_threads.py", "requests_session.py"),
        ("httpx_refresh.py", "fetch.mjs"),
        ("aiohttp_tasks.py", "curl.sh"),
    ],
    ids=" and ".join,
)
async def test_two_side_by_side_see_no_401_for_many_lifetimes(start_proxy, simulator, owner, pair):
    """Nomba keeps one session: without the proxy each login of one would end the other's."""
    for app in pair:
        need(app)
    simulator.switches.change({"lifetime": 1.0})
    proxy = await start_proxy(callers__anonymous="false", callers__login_lifetime=5)
    played = await asyncio.gather(
        *(play(proxy.url, app, calls=60, pause=0.15, **owner) for app in pair)
    )
    assert {status for statuses in played for status in statuses} == {200}
    logins = [line for line in await proxy.exchanges() if line["kind"] == "login"]
    assert len(logins) >= 3  # one of them again, when its token was about to end
    renewals = [line["grant"] for line in proxy.log.lines("token_renewed")]
    assert len(renewals) >= 4  # lifetimes of the real session
    # Every login there was is the proxy's own: the first one, and one for each token that had died
    # before it was renewed, as when the machine pauses.
    assert simulator.count("/v1/auth/token/issue") == renewals.count("issue")
