"""The control API and its Python client, over real sockets."""

import asyncio

import pytest
from harness import read_reply

from proxy.simulator import KINDS
from proxy.simulator.client import Control as Client
from proxy.simulator.client import ControlError
from proxy.simulator.control import Control
from proxy.simulator.simulator import Simulator

BALANCE = "/v1/accounts/balance"


@pytest.fixture
async def control(sim):
    running = Control(sim)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def nomba(control):
    """The client, whose blocking calls run beside the loop: `await nomba("expire")`."""
    client = Client(control.origin)

    async def call(name, *args, **options):
        return await asyncio.to_thread(getattr(client, name), *args, **options)

    return call


@pytest.fixture
async def ask(control):
    """A raw request to the control API."""

    async def send(method, path, *headers, body=b"", host="127.0.0.1"):
        name, port = control.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers]
        if host is not None:
            lines.append(f"Host: {host}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        reply = await read_reply(reader)
        writer.close()
        return reply

    return send


async def test_the_root_says_what_there_is(ask):
    reply = await ask("GET", "/")
    assert set(reply.json["faults"]) == set(KINDS)
    assert "POST /faults" in reply.json["routes"]
    missing = await ask("GET", "/nothing")
    assert (missing.status, "POST /faults" in missing.json["description"]) == (404, True)
    wrong = await ask("PUT", "/faults")
    assert (wrong.status, wrong.json["description"]) == (405, "/faults takes GET, POST, DELETE")


async def test_switches_are_shown_and_changed(sim, nomba):
    before = await nomba("switches")
    assert before["lifetime"] == 1800
    after = await nomba("switches", lifetime=60, expired_as="500", other_clients=["a:b"])
    assert (after["lifetime"], after["expired_as"]) == (60, "500")
    assert (sim.switches.lifetime, sim.switches.other_clients) == (60, ("a:b",))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nothing": 1}, "nothing is no switch; there are: client_id"),
        ({"expired_as": 401}, "expired_as must be one of 401, 500, 200"),
        ({"lifetime": "60"}, "lifetime must be a number"),
        ({"lifetime": True}, "lifetime must be a number"),
        ({"lifetime": 1e300}, "lifetime must be a number from -1000000000 to 1000000000"),
        ({"lifetime": 10**400}, "lifetime must be a number from"),
        ({"clock_skew": 1e12}, "clock_skew must be a number from"),
        ({"rate_limit": 10**400}, "rate_limit must be a number from"),
        ({"other_clients": ["a"]}, "other_clients must each be client_id:client_secret"),
        ({"rate_limit": -1}, "rate_limit must be a whole number, not negative"),
        ({"rate_limit": 1.5}, "rate_limit must be a whole number"),
        ({"expires_in": "true"}, "expires_in must be true or false"),
        ({"client_id": 7}, "client_id must be a text"),
        ({"account_id": ""}, "account_id must be 1 to 256 visible characters"),
        ({"account_id": "a\r\nb"}, "account_id must be 1 to 256 visible characters"),
        ({"lifetime": 0}, "lifetime must be above 0"),
        ({"other_clients": "a:b"}, "other_clients must be a list of texts"),
    ],
)
async def test_a_wrong_switch_changes_nothing(sim, nomba, changes, says):
    before = sim.switches.shown()
    with pytest.raises(ControlError) as caught:
        await nomba("switches", card_otp=False, **changes)
    assert says in str(caught.value)
    assert sim.switches.shown() == before


async def test_infinity_is_no_number(ask):
    reply = await ask("PATCH", "/switches", body=b'{"lifetime": Infinity}')
    assert (reply.status, "must be a number" in reply.json["description"]) == (400, True)


async def test_faults_are_asked_for_shown_and_forgotten(sim, logged_in, nomba):
    await nomba("fault", "unauthorized", path=BALANCE, times=2)
    await nomba("fault", "reply", status=503, body={"code": "x"}, probability=1, times="always")
    assert (await logged_in.balance()).status == 401
    shown = await nomba("faults")
    assert [(one["fault"], one["left"]) for one in shown] == [
        ("unauthorized", 1),
        ("reply", "always"),
    ]
    assert (await logged_in.transfer()).json == {"code": "x"}
    await nomba("clear_faults")
    assert await nomba("faults") == []
    assert (await logged_in.balance()).status == 200


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"fault": 7}', b'{"fault": "x"}', b"{"])
async def test_a_wrong_fault_is_400(sim, ask, body):
    reply = await ask("POST", "/faults", body=body)
    assert reply.status == 400
    assert sim.faults == []


@pytest.mark.parametrize(("name", "state"), [("expire", "expired"), ("revoke", "invalid")])
async def test_the_session_can_be_ended_now(sim, logged_in, nomba, name, state):
    await nomba(name)
    assert sim._sessions.standing(logged_in.token).state == state
    assert (await logged_in.balance()).status == 401


async def test_what_was_received_is_told_byte_for_byte(sim, nomba, wire):
    head = b"POST /v1/nowhere?a=%2f HTTP/1.1\r\nHOST: x\r\nX-Old: \xff\r\nContent-Length: 2\r\n\r\n"
    reader, writer = await wire()
    for body in (b"ok", b"\xff\x00", b"\xc3\xa9"):
        writer.write(head + body)
        await read_reply(reader)
    writer.write(head + b"1")
    while len(sim.received) < 4:
        await asyncio.sleep(0)
    seen = await nomba("received")
    assert [one.number for one in seen] == [1, 2, 3, 4]
    assert {one.connection for one in seen} == {1}
    assert [one.body for one in seen] == [b"ok", b"\xff\x00", b"\xc3\xa9", b""]
    assert {one.head for one in seen} == {head}
    assert [(one.whole, one.status) for one in seen] == [(True, 404)] * 3 + [(False, None)]
    assert (seen[0].method, seen[0].target) == ("POST", "/v1/nowhere?a=%2f")
    assert [one.number for one in await nomba("received", after=2)] == [3, 4]
    assert len(await nomba("received", "/v1/nowhere", after=3)) == 1
    assert await nomba("received", "/v1/else") == []
    assert len(await nomba("received", "/v1/*")) == 4
    await nomba("forget_received")
    assert await nomba("received") == []


async def test_a_wrong_number_is_400(ask):
    assert (await ask("GET", "/received?after=x")).status == 400
    assert (await ask("GET", "/received?after=" + "9" * 5000)).status == 400
    reply = await ask("GET", "/received?pathh=/x")
    assert (reply.status, reply.json["description"]) == (
        400,
        "there is path and after, and no pathh",
    )


async def test_secrets_that_somebody_chose_are_not_told(sim, nomba):
    assert (await nomba("switches"))["client_secret"] == "simulator-secret-not-a-real-one"
    shown = await nomba("switches", client_secret="marked", other_clients=["a:marked"])
    assert (shown["client_secret"], shown["other_clients"]) == ("***", "***")
    assert sim.switches.client_secret == "marked"


async def test_the_ledger_tells_what_moved_and_reset_forgets_it(sim, logged_in, nomba):
    await logged_in.transfer()
    ledger = await nomba("ledger")
    [movement] = ledger["movements"]
    assert (movement["source"], movement["target"]) == ("parent", "outside:NGN")
    assert (movement["amount"], movement["currency"], movement["ref"]) == ("250.50", "NGN", "ref-1")
    assert movement["operation"] == "POST /v2/transfers/bank"
    assert ledger["balances"]["parent"] == "999749.50"
    await nomba("reset")
    assert (await nomba("ledger"))["movements"] == []
    assert (await logged_in.balance()).status == 401


async def test_a_customer_can_pay(sim, logged_in, nomba):
    order = {"order": {"orderReference": "order-1", "amount": 5}}
    await logged_in.send("POST", "/v1/checkout/order", json=order)
    paid = await nomba("pay", orderReference="order-1")
    assert paid["amount"] == "5.00"
    assert sim.ledger[0].operation == "payment"
    for wrong in ({"orderReference": "order-1"}, {"orderReference": "x"}, {"amount": 1}, {}):
        with pytest.raises(ControlError):
            await nomba("pay", **wrong)
    assert len(sim.ledger) == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8091", 200),
        ("[::1]:8091", 200),
        ("localhost", 200),
        ("nomba.localhost:1", 200),
        ("simulator:8091", 200),  # a container's name
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8091", 403),
        ("", 403),
        ("[", 403),
        ("evil.com@127.0.0.1", 403),
        ("evil.com:80@localhost", 403),
        ("[::1%25evil.com]", 403),
        ("localhost.", 403),
        (None, 403),
    ],
)
async def test_a_strangers_name_for_this_address_is_refused(ask, host, status):
    assert (await ask("GET", "/faults", host=host)).status == status


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: http://127.0.0.1:3000"],
        ["Origin: http://a", "Origin: http://b"],
        ["Origin: null"],
        ["Sec-Fetch-Site: cross-site"],
    ],
)
async def test_a_web_page_is_refused(sim, ask, headers):
    reply = await ask("POST", "/faults", *headers, body=b'{"fault": "stall"}')
    assert (reply.status, sim.faults) == (403, [])
    assert reply.get("Access-Control-Allow-Origin") is None


async def test_what_the_control_api_is_asked_is_no_request_to_nomba(sim, nomba):
    await nomba("faults")
    assert sim.received == []


async def test_the_client_says_when_nobody_is_there(control, nomba):
    await control.stop()
    with pytest.raises(OSError, match="refused"):
        await nomba("faults")


async def test_the_client_says_when_something_else_is_there(sim):
    async def serve(reader, writer):
        writer.write(b"SSH-2.0-x\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="no simulator answers on"):
        await asyncio.to_thread(Client(f"http://127.0.0.1:{port}").faults)
    server.close()


async def test_only_the_newest_requests_are_remembered(clock):
    async with Simulator(clock=clock, memory=10_000) as sim:
        name, port = sim.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(name, int(port))

        async def send(n, size):
            writer.write(b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (n, size))
            writer.write(b"x" * size)
            await read_reply(reader)

        for n in range(5):
            await send(n, 9_000 if n == 3 else 3_000)
        assert [one.path for one in sim.received] == ["/4"]
        assert sim.received[0].number == 5
        for n in range(5, 40):  # again and again, so that the account stays true
            await send(n, 2_000)
        assert [one.number for one in sim.received] == [38, 39, 40]
        await send(40, 20_000)  # the newest is never forgotten
        assert [one.number for one in sim.received] == [41]
        sim.forget_received()
        for n in range(41, 44):
            await send(n, 2_000)
        assert [one.number for one in sim.received] == [42, 43, 44]
        writer.close()
