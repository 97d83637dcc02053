"""The same request again, on the same connection: decided alike, as long as nothing has changed."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from harness import read_reply

from proxy.core.caller import Digest

KEY, OTHERS = "npk_app_" + "s" * 43, "npk_other_" + "t" * 43
REVOKE = "/v1/auth/token/revoke"
BALANCE = "/v1/accounts/balance"


def entry(name="app", key=KEY, **more):
    """One `[[caller]]`, as the file has it."""
    values = {"name": name, "secrets": [str(Digest.of(key, salt="0" * 16))], **more}
    lines = [f"{field} = {json.dumps(value, default=str)}" for field, value in values.items()]
    return "\n".join(("[[caller]]", *lines, ""))


@pytest.fixture
def roster(tmp_path):
    """Write the callers file."""
    (tmp_path / "state").mkdir(exist_ok=True)

    def write(*entries):
        text = "anonymous = false\n" + "\n".join(entries)
        (tmp_path / "state" / "callers.toml").write_text(text)

    return write


class Kept:
    """A connection that is kept."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    async def ask(self, *fields, target=BALANCE, method="GET", body=b"", version="1.1"):
        start = f"{method} {target} HTTP/{version}"
        head = "\r\n".join((start, "Host: localhost", *fields, "", ""))
        self._writer.write(head.encode() + body)
        return await asyncio.wait_for(read_reply(self._reader), 20)


@asynccontextmanager
async def kept(proxy):
    reader, writer = await asyncio.open_connection(*proxy.address)
    yield Kept(reader, writer)
    writer.close()


async def reloaded(proxy):
    while not proxy.log.lines("callers_reloaded"):
        await asyncio.sleep(0.05)


async def log_in(proxy):
    """A phantom token of the caller's."""
    body = json.dumps({"client_id": "app", "client_secret": KEY}).encode()
    login = await proxy.send("POST", "/v1/auth/token/issue", body=body)
    return login.json["data"]["access_token"]


def bearer(token):
    return f"Authorization: Bearer {token}"


HOW = f"X-Nomba-Proxy-Key: {KEY}"
NOW_REFUSED = {
    "disabled": (entry(enabled=False), 401),
    "removed": (entry("other", OTHERS), 401),
    "with another secret": (entry(key=KEY[:-1] + "x"), 401),
    "expired": (entry(expires=str(datetime.now(UTC) - timedelta(days=1))), 401),
    "narrowed by a rule": (entry(rules=["allow GET /v1/banks"]), 403),
    "for another account": (entry(accounts=["another"]), 403),
    "for another upstream": (entry(upstreams=["another"]), 403),
}


@pytest.mark.parametrize("way", ["key", "phantom"])
@pytest.mark.parametrize("change", NOW_REFUSED)
async def test_a_caller_is_not_let_in_for_having_been_let_in_before(
    start_proxy, upstream, roster, change, way
):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin)
    how = HOW if way == "key" else bearer(await log_in(proxy))
    async with kept(proxy) as connection:
        for _ in range(2):
            assert (await connection.ask(how)).status == 200
        after, status = NOW_REFUSED[change]
        roster(after)
        await asyncio.wait_for(reloaded(proxy), 20)
        assert (await connection.ask(how)).status == status
    assert len(upstream.requests) == 2


async def test_a_revoked_phantom_opens_nothing_on_a_connection_that_knows_it(
    start_proxy, upstream, roster
):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin)
    token = await log_in(proxy)
    async with kept(proxy) as connection:
        for _ in range(2):
            assert (await connection.ask(bearer(token))).status == 200
        revoked = json.dumps({"access_token": token}).encode()
        assert (await proxy.send("POST", REVOKE, body=revoked)).status == 200
        assert (await connection.ask(bearer(token))).status == 401
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("way", ["key", "phantom"])
async def test_a_caller_that_expires_meanwhile_is_refused(start_proxy, upstream, roster, way):
    soon = datetime.now(UTC) + timedelta(seconds=4)
    roster(entry(expires=str(soon)))
    proxy = await start_proxy(base_url=upstream.origin)
    how = HOW if way == "key" else bearer(await log_in(proxy))
    async with kept(proxy) as connection:
        assert (await connection.ask(how)).status == 200
        await asyncio.sleep((soon - datetime.now(UTC)).total_seconds() + 0.01)
        assert (await connection.ask(how)).status == 401


async def test_a_phantom_that_ends_meanwhile_is_refused(start_proxy, upstream, roster):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin, callers__login_lifetime=3)
    how = bearer(await log_in(proxy))
    statuses = []
    async with kept(proxy) as connection:
        while 401 not in statuses:
            statuses.append((await connection.ask(how)).status)
            await asyncio.sleep(0.1)
    assert set(statuses) == {200, 401}


async def test_what_differs_in_one_byte_is_another_request(start_proxy, upstream, roster):
    roster(entry(), entry("other", OTHERS, role="read-only"))
    proxy = await start_proxy(base_url=upstream.origin)
    asked = [
        {"target": "/v1/a"},
        {"target": "/v1/b"},
        {"target": "/v1/b?c=1"},
        {"target": "/v1/b?c=1", "method": "DELETE"},
        {"target": "/v1/b?c=1", "method": "DELETE", "key": OTHERS},
        {"target": "/v1/b?c=1", "key": OTHERS},
        {"target": "/v1/b?c=1", "key": OTHERS, "more": "X-A: 1"},
        {"target": "/v1/b?c=1", "key": OTHERS, "more": "X-A: 2"},
        {"target": "/v1/b?c=1", "key": OTHERS, "more": "X-B: 2"},
    ]
    statuses = []
    async with kept(proxy) as connection:
        for one in asked:
            how = f"X-Nomba-Proxy-Key: {one.get('key', KEY)}"
            fields = (how, one.get("more", "X-A: 0"))
            method = one.get("method", "GET")
            statuses.append(
                (await connection.ask(*fields, target=one["target"], method=method)).status
            )
    assert statuses == [200, 200, 200, 200, 403, 200, 200, 200, 200]
    sent = [head.split(b" HTTP")[0] for head, _ in upstream.requests]
    assert sent == [
        f"{one.get('method', 'GET')} {one['target']}".encode() for one in asked if one != asked[4]
    ]
    assert [b"X-A: 0" in head for head, _ in upstream.requests] == [True] * 5 + [False] * 3
    lines = await proxy.exchanges(9)
    assert [line["caller"] for line in lines] == ["app"] * 4 + ["other"] * 5


async def test_bodies_of_the_same_head_have_their_own_lengths(start_proxy, upstream, roster):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin)
    async with kept(proxy) as connection:
        for size in (1, 5, 0, 15):
            chunk = b"%x\r\n%b\r\n" % (size, b"x" * size) if size else b""
            fields = (HOW, "Transfer-Encoding: chunked")
            reply = await connection.ask(*fields, method="POST", body=chunk + b"0\r\n\r\n")
            assert reply.status == 200
    assert [body for _, body in upstream.requests] == [b"x" * size for size in (1, 5, 0, 15)]
    for head, body in upstream.requests:
        assert head.lower().count(b"content-length: %d\r\n" % len(body)) == 1


@pytest.mark.parametrize(
    ("version", "field", "body"),
    [("1.0", "Transfer-Encoding: chunked", b"0\r\n\r\n"), ("2.0", "X-A: 0", b"")],
)
async def test_another_version_of_http_is_another_head(
    start_proxy, upstream, roster, version, field, body
):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin)
    async with kept(proxy) as connection:
        for said, status in (("1.1", 200), ("1.1", 200), (version, 400)):
            fields = (HOW, field, "Connection: keep-alive")
            reply = await connection.ask(*fields, method="POST", body=body, version=said)
            assert reply.status == status
    assert len(upstream.requests) == 2


async def test_what_is_observed_is_told_every_time(start_proxy, upstream, roster):
    roster(entry(role="read-only", observe=True))
    proxy = await start_proxy(base_url=upstream.origin)
    async with kept(proxy) as connection:
        for _ in range(3):
            assert (await connection.ask(HOW, method="DELETE")).status == 200
    ids = [line["request_id"] for line in await proxy.exchanges(3)]
    assert [event["request_id"] for event in proxy.log.lines("policy_observed")] == ids


async def test_limits_count_every_time(start_proxy, upstream, roster):
    roster(entry(rate=0.001, burst=2))
    proxy = await start_proxy(base_url=upstream.origin)
    async with kept(proxy) as connection:
        statuses = [(await connection.ask(HOW)).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


async def test_every_exchange_has_an_id_of_its_own(start_proxy, upstream, roster):
    roster(entry())
    proxy = await start_proxy(base_url=upstream.origin)
    async with kept(proxy) as connection:
        ids = {(await connection.ask(HOW)).get("X-Request-Id") for _ in range(5)}
        named = [
            (await connection.ask(HOW, "X-Request-Id: mine")).get("X-Request-Id") for _ in "12"
        ]
    assert len(ids) == 5
    assert named == ["mine", "mine"]
