"""What the first issue calls done, each as a flow over real sockets."""

import asyncio
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from harness import transfer_body

BALANCE = "/v1/accounts/balance"
TRANSFER = "/v2/transfers/bank"
ISSUE = "/v1/auth/token/issue"
REFRESH = "/v1/auth/token/refresh"


async def test_a_request_without_any_token_is_answered(proxy, simulator):
    reply = await proxy.get(BALANCE)
    assert reply.status == 200
    assert reply.outcome == "answered"
    assert Decimal(reply.json["data"]["amount"]) == simulator.balance


async def test_a_transfer_changes_the_next_balance(proxy):
    before = (await proxy.get(BALANCE)).json["data"]["amount"]
    assert (await proxy.transfer()).json["code"] == "200"
    after = (await proxy.get(BALANCE)).json["data"]["amount"]
    assert Decimal(before) - Decimal(after) == 250


async def test_a_transfer_after_a_revocation_is_renewed_and_replayed_once(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    reply = await proxy.transfer()

    assert reply.status == 200
    first, second = simulator.calls(TRANSFER)
    assert (first.status, second.status) == (401, 200)
    assert first.body == second.body == transfer_body()
    assert strip_token(first.raw_head) == strip_token(second.raw_head)
    assert first.bearer != second.bearer
    assert simulator.count(ISSUE) == 2
    assert simulator.count(REFRESH) == 0
    assert len(simulator.ledger) == 1
    line = (await proxy.exchanges(2))[-1]
    assert (line["attempts"], line["outcome"], line["generation"]) == (2, "answered", 2)


def strip_token(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith(b"Authorization:")]


async def test_200_concurrent_first_requests_cause_one_issue(start_proxy, simulator):
    with simulator.hold(ISSUE) as hold:
        proxy = await start_proxy()
        calls = [asyncio.create_task(proxy.get(BALANCE)) for _ in range(200)]
        await hold.caught(1)
        await asyncio.sleep(0.2)  # time for the callers to pile up
        hold.release()
        replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {200}
    assert simulator.count(ISSUE) == 1


async def test_200_concurrent_requests_after_a_revocation_cause_one_renewal(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    with simulator.hold(BALANCE) as hold:
        calls = [asyncio.create_task(proxy.get(BALANCE)) for _ in range(200)]
        await hold.caught(200)  # all of them sent with the dead token
        hold.release()
        replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {200}
    assert simulator.count(ISSUE) == 2
    refused = [call for call in simulator.calls(BALANCE) if call.status == 401]
    assert len(refused) == 200
    assert simulator.count(BALANCE) == 401


async def test_hang_ups_during_a_renewal_fail_nobody_else(proxy, simulator):
    await proxy.get(BALANCE)
    simulator.revoke()
    with simulator.hold(ISSUE) as hold:
        calls = [asyncio.create_task(proxy.get(BALANCE)) for _ in range(60)]
        await hold.caught(1)
        for call in calls[:20]:
            call.cancel()
        await asyncio.sleep(0.05)
        hold.release()
        replies = await asyncio.gather(*calls[20:])
    assert {reply.status for reply in replies} == {200}
    assert simulator.count(ISSUE) == 2


async def test_the_token_is_renewed_by_refresh_without_traffic(start_proxy, simulator):
    life = simulator.switches.lifetime = 3
    proxy = await start_proxy()
    await asyncio.wait_for(simulator.wait_for(REFRESH, 2), 20)
    for before, after in pairwise(proxy.log.lines("token_renewed")):
        # A machine that pauses lets a token die: only then is there another login.
        apart = datetime.fromisoformat(after["timestamp"]) - datetime.fromisoformat(
            before["timestamp"]
        )
        assert after["grant"] == "refresh" or apart.total_seconds() > life * 0.9


async def test_requests_during_a_background_renewal_use_the_living_token(start_proxy, simulator):
    simulator.switches.lifetime = 8  # so it is two seconds before its end that it is renewed
    simulator.switches.refresh_kills_old = False
    with simulator.hold(REFRESH) as hold:
        proxy = await start_proxy()
        await asyncio.wait_for(hold.caught(1), 20)
        reply = await asyncio.wait_for(proxy.get(BALANCE), 20)  # and the renewal is held still
        hold.release()
    assert reply.status == 200


async def test_the_proxy_starts_while_nomba_is_down_and_recovers(start_proxy, simulator):
    simulator.fail(ISSUE, times=1, drop=True)
    proxy = await start_proxy()
    reply = await proxy.get(BALANCE)
    assert (reply.status, reply.json["proxy"]["error"]) == (503, "token_unavailable")
    assert int(reply.get("Retry-After")) >= 1
    assert reply.outcome == "not_sent"
    assert simulator.count(BALANCE) == 0
    for _ in range(100):
        if (await proxy.get(BALANCE)).status == 200:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("it does not recover")
    assert simulator.count(ISSUE) == 2


async def test_a_wrong_secret_is_told_apart_and_does_not_hammer(start_proxy, simulator):
    for form in ("401", "200"):
        simulator.switches.wrong_secret = form
        before = simulator.count(ISSUE)
        proxy = await start_proxy(env={"NOMBA_CLIENT_SECRET": "wrong-and-marked-secret"})
        for _ in range(20):
            reply = await proxy.get(BALANCE)
            assert reply.status == 503
        assert simulator.count(ISSUE) == before + 1
        assert "credentials" in reply.json["proxy"]["hint"]
        assert int(reply.get("Retry-After")) >= 30
        assert proxy.log.lines("token_renewal_failed")[0]["cause"] == "credentials"
        assert "wrong-and-marked-secret" not in proxy.log.text + reply.raw.decode()
