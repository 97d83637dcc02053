"""Forty requests a second, five transfers to one recipient in a minute; both from the facts."""

import pytest

TOO_MANY = (429, {"code": "429", "description": "Too many requests"})


async def test_the_forty_first_request_of_a_second_gets_429(sim, logged_in, clock):
    clock.now += 1
    replies = [await logged_in.balance() for _ in range(42)]
    assert [reply.status for reply in replies] == [200] * 40 + [429] * 2
    assert (replies[-1].status, replies[-1].json) == TOO_MANY
    assert replies[-1].headers["X-Rate-Limit-Remaining"] == "0"
    clock.now += 1
    reply = await logged_in.balance()
    assert (reply.status, reply.headers["X-Rate-Limit-Remaining"]) == (200, "39")


async def test_the_limit_can_be_another_or_none(sim, logged_in, clock):
    sim.switches.rate_limit = 2
    clock.now += 1
    replies = [await logged_in.balance() for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert [reply.headers["X-Rate-Limit-Limit"] for reply in replies] == ["2"] * 3
    sim.switches.rate_limit = 0
    assert {(await logged_in.balance()).status for _ in range(50)} == {200}


async def test_logins_count_but_are_never_refused(sim, caller):
    assert {(await caller.issue()).status for _ in range(45)} == {200}
    assert (await caller.balance()).status == 429


@pytest.mark.parametrize("path", ["/v2/transfers/bank", "/v1/transfers/bank"])
async def test_the_sixth_transfer_to_a_recipient_in_a_minute_gets_429(sim, logged_in, clock, path):
    for n in range(5):
        clock.now += 1
        assert (await logged_in.transfer(f"ref-{n}", path=path)).status == 200
    reply = await logged_in.transfer("ref-6", path=path)
    assert (reply.status, reply.json) == TOO_MANY
    assert len(sim.ledger) == 5
    assert (await logged_in.transfer("ref-7", accountNumber="9876543210")).status == 200
    clock.now += 56
    assert (await logged_in.transfer("ref-6", path=path)).status == 200
    assert (await logged_in.transfer("ref-8", path=path)).status == 429


async def test_the_limit_of_a_recipient_can_be_none_and_counts_only_what_moved(sim, logged_in):
    for _ in range(9):
        assert (await logged_in.transfer(amount=-1)).status == 400
    for n in range(5):
        assert (await logged_in.transfer(f"ref-{n}")).status == 200
    sim.switches.recipient_limit = 0
    for n in range(5, 9):
        assert (await logged_in.transfer(f"ref-{n}")).status == 200


async def test_wallet_transfers_are_counted_by_receiver(sim, logged_in):
    for n in range(6):
        form = {"amount": 1, "receiverAccountId": "another", "merchantTxRef": f"ref-{n}"}
        reply = await logged_in.send("POST", "/v2/transfers/wallet", json=form)
        assert reply.status == (200 if n < 5 else 429)


async def test_reset_forgets_what_was_counted(sim, logged_in):
    for n in range(5):
        await logged_in.transfer(f"ref-{n}")
    sim.reset()
    await logged_in.issue()
    assert (await logged_in.transfer()).status == 200
