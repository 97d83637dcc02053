"""Every way in, right and wrong: what comes back, and that nothing went to the upstream."""

import asyncio
import base64
import dataclasses
import json
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from processes import until

from proxy.core.caller import Digest

BALANCE, TRANSFER = "/v1/accounts/balance", "/v2/transfers/bank"
ISSUE, REVOKE = "/v1/auth/token/issue", "/v1/auth/token/revoke"
OURS = "00000000-0000-4000-8000-acc000000001"
KEY = "npk_app_" + "s" * 43
OLD = "npk_app_" + "o" * 43
FULL = "npk_full_" + "f" * 43
OTHERS = "npk_other_" + "t" * 43
PAST = datetime.now(UTC) - timedelta(days=1)


def entry(name="app", key=KEY, **more):
    """One `[[caller]]`, as the file has it."""
    values = {"name": name, "secrets": [str(Digest.of(key, salt="0" * 16))], **more}
    lines = ["[[caller]]"]
    for field, value in values.items():
        shown = value.isoformat() if isinstance(value, datetime) else json.dumps(value)
        lines.append(f"{field} = {shown}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def roster(tmp_path):
    """Write the callers file."""
    (tmp_path / "state").mkdir(exist_ok=True)

    def write(*entries, anonymous=None):
        head = "" if anonymous is None else f"anonymous = {json.dumps(anonymous)}\n"
        (tmp_path / "state" / "callers.toml").write_text(head + "\n".join(entries))

    return write


async def changed(proxy, count=1):
    """Wait until the proxy has taken over a changed callers file."""
    for _ in range(100):
        if len(proxy.log.lines("callers_reloaded")) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("never seen")


# -- the ways in --------------------------------------------------------------------------


async def phantom(proxy, key):
    body = json.dumps({"client_id": "app", "client_secret": key}).encode()
    reply = await proxy.send("POST", ISSUE, body=body)
    if reply.status != 200:
        return reply
    return f"Authorization: Bearer {reply.json['data']['access_token']}"


async def bare_phantom(proxy, key):
    found = await phantom(proxy, key)
    return found.replace("Bearer ", "") if isinstance(found, str) else found


async def key_field(_, key):
    return f"X-Nomba-Proxy-Key: {key}"


async def key_field_in_another_case(_, key):
    return f"x-nomba-PROXY-key:  {key} "


async def proxy_bearer(_, key):
    return f"Proxy-Authorization: Bearer {key}"


async def proxy_basic(_, key):
    return f"Proxy-Authorization: Basic {base64.b64encode(f'app:{key}'.encode()).decode()}"


async def bearer(_, key):
    return f"Authorization: Bearer {key}"


async def basic(_, key):
    return f"Authorization: basic {base64.b64encode(f'app:{key}'.encode()).decode()}"


WAYS = [phantom, bare_phantom, key_field, key_field_in_another_case, proxy_bearer, proxy_basic]
WAYS += [basic, bearer]
UNKNOWN, FORBIDDEN = (401, "caller_unknown"), (403, "caller_forbidden")
# What is wrong: the caller's entry, the key it sends, what it gets.
WRONG = {
    "wrong secret": (entry(), KEY[:-1] + "x", UNKNOWN),
    "no secret at all": (entry(secrets=[]), KEY, UNKNOWN),
    "another caller's": (entry() + entry("other", OTHERS), OTHERS.replace("other", "app"), UNKNOWN),
    "rotated away": (entry(), OLD, UNKNOWN),
    "expired": (entry(expires=PAST), KEY, UNKNOWN),
    "disabled": (entry(enabled=False), KEY, UNKNOWN),
    "wrong upstream": (entry(upstreams=["other"]), KEY, FORBIDDEN),
    "wrong account": (entry(accounts=["sub-1"]), KEY, (403, "account_mismatch")),
    "wrong rule": (entry(rules=["allow family:checkout"]), KEY, FORBIDDEN),
    "wrong class": (entry(rules=["deny class:money", "allow any"]), KEY, FORBIDDEN),
    "wrong role": (entry(role="read-only"), KEY, FORBIDDEN),
}


@pytest.fixture
async def start(start_proxy, simulator, upstream, tmp_path):
    """Start a proxy with two upstreams, `nomba` (the simulator) and `other`."""
    secret = tmp_path / "secret"
    secret.write_text(simulator.switches.client_secret)
    secret.chmod(0o600)
    file = tmp_path / "proxy.toml"
    file.write_text(
        "".join(
            f'[[upstream]]\nname = "{name}"\nmount = "{mount}"\nbase_url = "{origin}"\n'
            f'client_id = "{client}"\nclient_secret_file = "{secret}"\naccount_id = "{OURS}"\n'
            for name, mount, origin, client in (
                ("nomba", "/", simulator.origin, simulator.switches.client_id),
                ("other", "/other", upstream.origin, "other"),
            )
        )
    )
    gone = ("CLIENT_ID", "CLIENT_SECRET", "ACCOUNT_ID", "BASE_URL")

    async def begin(**settings):
        env = dict.fromkeys((f"NOMBA_{name}" for name in gone), None)
        proxy = await start_proxy(env=env | {"NOMBA_PROXY_CONFIG": str(file)}, **settings)
        await simulator.wait_for(ISSUE, 1)
        simulator.forget_received()
        return proxy

    return begin


def beside_our_token(call):
    """The fields of a call but for our token, in which any short word can stand by chance."""
    [token] = [value for name, value in call.headers if name == "Authorization"]
    assert re.fullmatch(r"Bearer [\w.-]+", token)
    return str([one for one in call.headers if one[0] != "Authorization"])


@pytest.mark.parametrize("way", WAYS)
async def test_the_right_way_in(start, simulator, roster, way):
    roster(entry())
    proxy = await start()
    how = await way(proxy, KEY)
    assert (await proxy.get(BALANCE, how)).status == 200
    assert (await proxy.send("POST", TRANSFER, how, body=b"{}")).outcome == "answered"
    lines = [line for line in await proxy.exchanges(2) if line["kind"] != "login"]
    assert [line["caller"] for line in lines] == ["app", "app"]
    for call in simulator.received:
        sent = str(call.headers)
        assert "Basic" not in beside_our_token(call)
        assert KEY not in sent
        assert "proxy-key" not in sent.lower()
        assert how.split()[-1] not in sent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", WRONG)
async def test_every_wrong_way_in_is_refused_and_nothing_is_sent(
    start, simulator, roster, way, wrong
):
    caller, key, expected = WRONG[wrong]
    roster(caller)
    proxy = await start()
    how = await way(proxy, key)
    if isinstance(how, str):  # else the login was refused already
        reply = await proxy.send("POST", TRANSFER, how, body=b'{"amount": 1}')
    else:
        reply = how
    assert (reply.status, reply.json["proxy"]["error"]) == expected
    assert (reply.json["code"], reply.outcome) == (str(expected[0]), "not_sent")
    assert simulator.received == []
    assert key not in proxy.log.text + reply.raw.decode()


@pytest.mark.parametrize("way", [phantom, bare_phantom])
async def test_a_revoked_phantom_opens_nothing(start, simulator, roster, way):
    roster(entry())
    proxy = await start()
    how = await way(proxy, KEY)
    body = json.dumps({"access_token": how.split()[-1]}).encode()
    assert (await proxy.send("POST", REVOKE, body=body)).status == 200
    reply = await proxy.send("POST", TRANSFER, how, body=b"{}")
    assert (reply.status, reply.json["proxy"]["error"]) == UNKNOWN
    assert simulator.received == []


@pytest.mark.parametrize("way", [phantom, bare_phantom])
@pytest.mark.parametrize(
    "change",
    {
        "disabled": entry(enabled=False),
        "removed": "",
        "expired": entry(expires=PAST),
        "rotated away": entry(key=OLD),
    }.items(),
    ids=lambda one: one[0],
)
async def test_a_phantom_ends_with_what_it_was_issued_for(start, simulator, roster, way, change):
    roster(entry())
    proxy = await start()
    how = await way(proxy, KEY)
    assert (await proxy.get(BALANCE, how)).status == 200
    simulator.forget_received()
    roster(change[1], anonymous=False)
    await changed(proxy)
    reply = await proxy.get(BALANCE, how)
    assert (reply.status, reply.json["proxy"]["error"]) == UNKNOWN
    assert simulator.received == []


async def test_a_phantom_opens_the_upstream_it_was_issued_at_only(start, simulator, roster):
    roster(entry())
    proxy = await start()
    here = await phantom(proxy, KEY)
    body = json.dumps({"client_id": "app", "client_secret": KEY}).encode()
    reply = await proxy.send("POST", f"/other{ISSUE}", body=body)
    there = f"Authorization: {reply.json['data']['access_token']}"
    assert (await proxy.get("/other/v1/x", there)).status == 200
    assert (await proxy.get("/other/v1/x", here)).status == 401
    assert (await proxy.get(BALANCE, there)).status == 401
    assert simulator.received == []


async def test_two_secrets_are_valid_while_one_replaces_the_other(start, simulator, roster):
    both = [str(Digest.of(one, salt="0" * 16)) for one in (OLD, KEY)]
    roster(entry(secrets=both))
    proxy = await start()
    for key in (OLD, KEY):
        for way in WAYS:
            assert (await proxy.get(BALANCE, await way(proxy, key))).status == 200


async def test_a_key_that_is_wrong_is_refused_even_where_strangers_are_let_in(start, roster):
    roster(entry(), anonymous=True)
    proxy = await start()
    assert (await proxy.get(BALANCE)).status == 200
    assert (await proxy.get(BALANCE, "X-Nomba-Proxy-Key: npk_app_x")).status == 401
    assert (await proxy.get(BALANCE, "X-Nomba-Proxy-Key: ")).status == 401
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {KEY}")).status == 200


async def test_several_keys_are_none(start, simulator, roster):
    roster(entry())
    proxy = await start()
    one, two = await key_field(proxy, KEY), await proxy_bearer(proxy, KEY)
    for headers in ((one, one), (one, two), (two, one)):
        assert (await proxy.get(BALANCE, *headers)).status == 401
    assert simulator.received == []


async def test_a_key_wins_over_whatever_stands_in_authorization(start, roster):
    roster(entry())
    proxy = await start()
    for other in ("Bearer x", "Basic eA=="):
        reply = await proxy.get(BALANCE, f"Authorization: {other}", f"X-Nomba-Proxy-Key: {KEY}")
        assert reply.status == 200


# -- strangers ----------------------------------------------------------------------------


async def test_with_the_first_caller_strangers_are_out_unless_somebody_kept_them(start, roster):
    proxy = await start()
    assert (await proxy.get(BALANCE)).status == 200
    for number, (anonymous, status) in enumerate(((None, 401), (True, 200), (False, 401)), 1):
        roster(entry(), anonymous=anonymous)
        await changed(proxy, number)
        assert (await proxy.get(BALANCE)).status == status


async def test_a_setting_wins_over_the_file(start, roster):
    roster(entry(), anonymous=False)
    proxy = await start(callers__anonymous="true")
    assert (await proxy.get(BALANCE)).status == 200


async def test_a_file_that_lost_what_was_in_it_opens_no_door(start, roster, tmp_path):
    roster(entry())
    proxy = await start()
    (tmp_path / "state" / "callers.toml").write_text("")
    await changed(proxy)
    for text in ("\n", "# nothing\n", ""):  # however often
        (tmp_path / "state" / "callers.toml").write_text(text)
        await asyncio.sleep(1.2)
        assert (await proxy.get(BALANCE)).status == 401
    roster(anonymous=True)
    for _ in range(100):
        if (await proxy.get(BALANCE)).status == 200:
            break
        await asyncio.sleep(0.05)
    assert (await proxy.get(BALANCE)).status == 200


async def test_a_change_right_after_the_settings_were_read_is_seen(start, roster):
    roster(entry())
    proxy = await start()
    roster(entry(enabled=False))  # before the first look
    await changed(proxy)
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {KEY}")).status == 401


async def test_a_file_that_is_gone_opens_no_door(start, roster, tmp_path):
    roster(entry(), anonymous=False)
    proxy = await start()
    (tmp_path / "state" / "callers.toml").unlink()
    for _ in range(100):
        if proxy.log.lines("callers_not_reloaded"):
            break
        await asyncio.sleep(0.05)
    (event,) = proxy.log.lines("callers_not_reloaded")
    assert "is gone" in event["reason"]
    assert "callers of before are in force" in event["hint"]
    assert (await proxy.get(BALANCE)).status == 401
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {KEY}")).status == 200


def held_up(name):
    """Settings of which one reader waits once it has read; that it has, and that it may go on."""
    reading, over = threading.Event(), threading.Event()

    def adapt(settings):
        def slowly():
            found = getattr(settings, name)()
            reading.set()
            assert over.wait(20)
            return found

        return dataclasses.replace(settings, **{name: slowly})

    return adapt, reading, over


async def test_callers_that_are_in_the_settings_alone_miss_no_file(start_proxy, tmp_path):
    config = tmp_path / "proxy.toml"
    config.write_text(entry())
    proxy = await start_proxy(env={"NOMBA_PROXY_CONFIG": str(config)})
    await asyncio.sleep(1.5)  # the first look is over
    (tmp_path / "state" / "callers.toml").write_text(entry("other", OTHERS))
    await changed(proxy)
    assert proxy.log.lines("callers_not_reloaded") == []
    (tmp_path / "state" / "callers.toml").unlink()
    await until(lambda: proxy.log.lines("callers_not_reloaded"))
    for key in (KEY, OTHERS):
        assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {key}")).status == 200


async def test_a_look_at_the_callers_that_a_reload_overtakes_brings_nobody_back(
    start_proxy, roster, tmp_path
):
    """What was read with the settings of before must not come after those of now."""
    config = tmp_path / "proxy.toml"
    config.write_text(entry())
    roster(entry("other", OTHERS), anonymous=False)
    adapt, reading, over = held_up("read_callers")
    proxy = await start_proxy(env={"NOMBA_PROXY_CONFIG": str(config)}, adapt=adapt)
    with_key = f"X-Nomba-Proxy-Key: {KEY}"
    assert (await proxy.get(BALANCE, with_key)).status == 200
    await until(reading.is_set)
    config.write_text("")
    assert (await proxy.running.reload())["changed"] == ["caller app"]
    over.set()
    roster(entry("full", FULL), anonymous=False)
    await changed(proxy)
    assert (await proxy.get(BALANCE, with_key)).status == 401
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {FULL}")).status == 200


async def test_a_reload_opens_no_door_that_was_closed_since_the_start(
    start_proxy, roster, tmp_path
):
    """An empty file says nothing of it; so it stays as the last one had it."""
    proxy = await start_proxy()
    assert (await proxy.get(BALANCE)).status == 200
    roster(entry())
    await changed(proxy)
    (tmp_path / "state" / "callers.toml").write_text("")
    await changed(proxy, 2)
    assert (await proxy.get(BALANCE)).status == 401
    await proxy.running.reload()
    assert (await proxy.get(BALANCE)).status == 401


async def test_what_a_reload_has_read_too_early_is_read_again(start_proxy, roster, tmp_path):
    """The file may have changed, and been looked at, before what was read comes into force."""
    roster(entry("other", OTHERS), anonymous=False)
    adapt, reading, over = held_up("again")
    proxy = await start_proxy(adapt=adapt)
    reload = asyncio.create_task(proxy.running.reload())
    await until(reading.is_set)
    roster(entry("other", OTHERS), entry(), anonymous=False)
    await changed(proxy)
    over.set()
    await reload
    await changed(proxy, 2)
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {KEY}")).status == 200


async def test_a_file_that_cannot_be_used_changes_nothing_and_the_log_says_why(start, roster):
    roster(entry())
    proxy = await start()
    roster(entry(role="king"))
    for _ in range(100):
        if proxy.log.lines("callers_not_reloaded"):
            break
        await asyncio.sleep(0.05)
    (event,) = proxy.log.lines("callers_not_reloaded")
    assert "must be full, no-money or read-only" in event["reason"]
    assert "nomba-proxy check" in event["hint"]
    assert (await proxy.get(BALANCE, f"X-Nomba-Proxy-Key: {KEY}")).status == 200
    assert (await proxy.get(BALANCE)).status == 401


# -- policies -----------------------------------------------------------------------------


async def test_an_observed_caller_is_let_through_and_reported(start, simulator, roster):
    roster(entry(rules=["allow class:read"], observe=True))
    proxy = await start()
    how = await key_field(proxy, KEY)
    assert (await proxy.send("POST", TRANSFER, how, body=b"{}")).outcome == "answered"
    assert (await proxy.get(BALANCE, how)).status == 200
    (event,) = proxy.log.lines("policy_observed")
    assert (event["caller"], event["route"]) == ("app", TRANSFER)
    assert "none of its rules" in event["reason"]


async def test_a_sub_account_in_the_path_has_to_be_the_callers(start, simulator, roster):
    mine = simulator.switches.account_id.replace("acc", "5ab")
    roster(entry(accounts=[mine]))
    proxy = await start()
    how = await key_field(proxy, KEY)
    assert (await proxy.get(f"/v1/accounts/{mine}/balance", how)).outcome == "answered"
    for path in ("/v1/accounts/someone/balance", BALANCE, "/v1/transactions/accounts"):
        reply = await proxy.get(path, how)
        assert (reply.status, reply.json["proxy"]["error"]) == (403, "account_mismatch")
    assert len(simulator.received) == 1


async def test_more_than_the_rate_is_told_to_come_again(start, simulator, roster):
    roster(entry(rate=0.1, burst=2), entry("other", OTHERS))
    proxy = await start()
    how = await key_field(proxy, KEY)
    replies = [await proxy.get(BALANCE, how) for _ in range(4)]
    assert [one.status for one in replies] == [200, 200, 429, 429]
    assert replies[3].json["proxy"]["error"] == "rate_limited"
    hint = replies[3].json["proxy"]["hint"]
    assert "0.1 a second (rate), 2 at once after a pause (burst). " in hint
    assert 1 <= int(replies[3].get("Retry-After")) <= 10
    assert len(simulator.received) == 2
    assert (await proxy.get(BALANCE, await key_field(proxy, OTHERS))).status == 200


async def test_a_login_counts_as_a_request(start, simulator, roster):
    roster(entry(rate=0.1, burst=2))
    proxy = await start()
    assert isinstance(await phantom(proxy, KEY), str)
    assert isinstance(await phantom(proxy, KEY), str)
    assert (await phantom(proxy, KEY)).status == 429


async def test_more_at_a_time_than_a_caller_may_are_refused(start, simulator, roster):
    roster(entry(concurrent=1))
    proxy = await start()
    how = await key_field(proxy, KEY)
    with simulator.hold(BALANCE) as hold:
        first = asyncio.create_task(proxy.get(BALANCE, how))
        await hold.caught()
        second = await proxy.get(BALANCE, how)
        assert (second.status, second.get("Retry-After")) == (429, "1")
    assert (await first).status == 200
    assert (await proxy.get(BALANCE, how)).status == 200
    assert (await proxy.get("/v1/none/such", how)).status == 404  # it is told when one ends


async def test_a_callers_body_may_be_smaller_than_everybodys(start, simulator, roster):
    roster(entry(body_limit=10), entry("other", OTHERS))
    proxy = await start()
    how = await key_field(proxy, KEY)
    assert (await proxy.send("POST", "/v1/x", how, body=b"x" * 10)).outcome == "answered"
    reply = await proxy.send("POST", "/v1/x", how, body=b"x" * 11)
    assert (reply.status, reply.json["proxy"]["error"]) == (413, "body_too_large")
    chunked = (
        f"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n{how}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    reply = await proxy.raw(chunked.encode() + b"b\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n")
    assert reply.status == 413
    assert len(simulator.received) == 1
    other = await key_field(proxy, OTHERS)
    assert (await proxy.send("POST", "/v1/x", other, body=b"x" * 11)).outcome == "answered"


# Attempts of a caller that may only read to have a transfer sent. Easy to extend: a request
# line and fields; {key} is its key.
BYPASSES = [
    ("POST /v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /V2/Transfers/Bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/%74ransfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers%2fbank", "X-Nomba-Proxy-Key: {key}"),
    ("POST //v2//transfers//bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank;x", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank/", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v1/accounts/../../v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v1/accounts/%2e%2e/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank#/v1/accounts/balance", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2\\transfers\\bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST http://localhost:{port}/v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST http://elsewhere.example/v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /sandbox/v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("PROPFIND /v2/transfers/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v9/a/payout/nobody/knows", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank", "X_Nomba_Proxy_Key: {key}"),
    ("POST /v2/transfers/bank", "X-Nomba-Proxy-Key: {key}", "X-Nomba-Proxy-Key: {full}x"),
    ("POST /v2/transfers/bank", "Authorization: Bearer {key}"),
    ("POST /v2/transfers%20/bank", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank%00", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank", "Authorization: Basic OjpYOg==", "Authorization: {key}"),
    ("POST /v2/transfers/bank", "X-Forwarded-User: full", "X-Nomba-Proxy-Key: {key}"),
    ("POST /v2/transfers/bank", "X-Nomba-Proxy-Key: {key}", "Connection: X-Nomba-Proxy-Key"),
    ("GET /v2/transfers/bank", "X-Nomba-Proxy-Key: {key}", "X-HTTP-Method-Override: POST"),
    ("GET /v1/x", "X-Nomba-Proxy-Key: {key}", "X-Original-URL: /v2/transfers/bank"),
    ("GET /v1/x", "X-Nomba-Proxy-Key: {key}", "X-Rewrite-URL: /v2/transfers/bank"),
    ("GET /v1/x", "X-Nomba-Proxy-Key: {key}", "X_Method_Override: POST"),
]


@pytest.mark.parametrize("attempt", BYPASSES, ids=" | ".join)
@pytest.mark.parametrize("policy", [{"role": "read-only"}, {"rules": ["allow class:read"]}])
async def test_no_attempt_to_get_around_a_policy_passes(start, simulator, roster, attempt, policy):
    roster(entry(**policy), entry("full", FULL))
    proxy = await start()
    line, *fields = (
        one.format(key=KEY, full=FULL, port=proxy.running.listen.port) for one in attempt
    )
    request = "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *fields, "Content-Length: 2"])
    reply = await proxy.raw(request.encode() + b"\r\n\r\n{}")
    for call in simulator.received:  # what passes is a read, and nothing in it says otherwise
        assert call.method == "GET"
        assert "POST" not in beside_our_token(call)
        assert "transfers" not in str(call.headers)
    if not line.startswith("GET"):
        assert reply.status in {400, 401, 403}
        assert reply.outcome in {"not_sent", None}
        assert simulator.received == []


# -- web pages ----------------------------------------------------------------------------


PAGES = [
    (["Host: evil.example"], "host_refused"),
    (["Host: localhost", "Origin: https://evil.example"], "origin_refused"),
    (["Host: localhost", "Origin: null"], "origin_refused"),
    (["Host: localhost", "Sec-Fetch-Site: cross-site"], "origin_refused"),
]


async def as_page(proxy, fields, *more, method="POST"):
    lines = [f"{method} {TRANSFER} HTTP/1.1", *fields, *more, "Content-Length: 2"]
    return await proxy.raw("\r\n".join(lines).encode() + b"\r\n\r\n{}")


@pytest.mark.parametrize(("fields", "error"), PAGES)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
async def test_a_page_gets_nothing_through_a_browser_of_a_stranger_or_with_basic(
    start, simulator, roster, fields, error, method
):
    roster(entry(), anonymous=True)
    proxy = await start()
    for more in ((), (await basic(proxy, KEY),)):
        reply = await as_page(proxy, fields, *more, method=method)
        assert (reply.status, reply.json["proxy"]["error"]) == (403, error)
        assert "access-control" not in reply.raw.decode().lower()
    assert simulator.received == []


@pytest.mark.parametrize("page", ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"])
async def test_a_page_does_not_log_in_even_with_the_right_secret(start, roster, page):
    roster(entry())
    proxy = await start()
    body = json.dumps({"client_id": "app", "client_secret": KEY}).encode()
    reply = await proxy.send("POST", ISSUE, page, body=body)
    assert (reply.status, reply.json["proxy"]["error"]) == (403, "origin_refused")
    host = f"POST {ISSUE} HTTP/1.1\r\nHost: nomba-proxy:8080\r\nContent-Length: {len(body)}\r\n\r\n"
    assert (await proxy.raw(host.encode() + body)).status == 200  # an app in another container


@pytest.mark.parametrize(("fields", "_"), PAGES)
async def test_what_no_browser_sends_by_itself_is_no_page(start, roster, fields, _):
    roster(entry())
    proxy = await start()
    for way in (key_field, phantom, proxy_bearer):
        assert (await as_page(proxy, fields, await way(proxy, KEY))).outcome == "answered"


async def test_hosts_and_origins_can_be_allowed(start, roster):
    roster(entry(), anonymous=True)
    proxy = await start(callers__hosts="proxy.internal", callers__origins="https://a.example")
    allowed = ["Host: proxy.internal:8080", "Origin: https://a.example"]
    assert (await as_page(proxy, allowed)).outcome == "answered"
    assert (
        await as_page(proxy, ["Host: proxy.internal", "Origin: https://b.example"])
    ).status == 403


async def test_the_upstream_cannot_open_a_reply_to_pages_of_strangers(
    start_proxy, upstream, roster
):
    roster(entry(), anonymous=True)
    proxy = await start_proxy(base_url=upstream.origin)
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-Headers: x\r\n"
        b"Vary: Origin\r\nContent-Length: 0\r\n\r\n"
    )
    strange = await proxy.get("/v1/x")
    assert "access-control" not in strange.raw.decode().lower()
    assert strange.get("Vary") == "Origin"
    known = await proxy.get("/v1/x", await key_field(proxy, KEY))
    assert known.get("Access-Control-Allow-Origin") == "*"


async def test_our_token_does_not_come_back_in_a_header(start_proxy, upstream):
    proxy = await start_proxy(base_url=upstream.origin)
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 200 OK\r\nX-Debug: Bearer token-1!\r\nContent-Length: 0\r\n\r\n"
    )
    reply = await proxy.get("/v1/x")
    assert reply.get("X-Debug") == "Bearer ***!"
    upstream.answer = upstream.reply_with(
        b"HTTP/1.1 103 token-1\r\nX-token-1: token-1\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
        b"HTTP/1.1 200 Bearer token-1\r\nX-token-1: x\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*proxy.address)
    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    got = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert got.startswith(b"HTTP/1.1 103 ***\r\n")
    assert b"token-1" not in got
    assert b"Access-Control" not in got
    event, *_ = proxy.log.lines("token_in_reply")
    assert event["request_id"] == reply.get("X-Request-Id")


@pytest.mark.parametrize("leads_to", ["api.nomba.com", "sandbox.nomba.com"])
@pytest.mark.parametrize("port", ["", ":443"])
async def test_who_calls_nombas_other_environment_by_its_name_does_not_get_this_one(
    start_proxy, leads_to, port
):
    proxy = await start_proxy(
        base_url=f"https://{leads_to}",
        upstream__addresses="127.0.0.1",  # nobody is there
        callers__anonymous="true",
        token__wait_limit="0.2",
        token__call_timeout="0.1",
    )

    async def said(host):
        request = f"GET /v1/accounts/balance HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        return (await proxy.raw(request)).json["proxy"]["error"]

    other = "sandbox.nomba.com" if leads_to == "api.nomba.com" else "api.nomba.com"
    assert await said(other.upper() + port) == "host_refused"
    assert await said(leads_to + port) == "token_unavailable"
    assert await said("localhost") == "token_unavailable"
