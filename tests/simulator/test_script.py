import asyncio

import pytest

BALANCE = "/v1/accounts/balance"
TRANSFER = "/v2/transfers/bank"


async def test_a_scripted_reply_comes_as_often_as_asked(sim, logged_in):
    sim.fail(BALANCE, times=2, status=503)
    replies = [await logged_in.balance() for _ in range(3)]
    assert [reply.status for reply in replies] == [503, 503, 200]
    assert replies[0].json == {"code": "503", "description": "Service Unavailable"}
    assert [request.status for request in sim.calls(BALANCE)] == [503, 503, 200]


async def test_failures_of_one_path_queue_up_and_leave_others_alone(sim, logged_in):
    sim.fail(BALANCE, status=500)
    sim.fail(BALANCE, status=429)
    assert (await logged_in.send("GET", "/v1/transfers/banks?a=1")).status == 200
    assert [(await logged_in.balance()).status for _ in range(3)] == [500, 429, 200]


async def test_a_scripted_reply_can_be_anything(sim, logged_in):
    html = {"headers": (("Content-Type", "text/html"), ("Date", "never"), ("X-A", "b"))}
    sim.fail(BALANCE, status=403, body=b"<h1>no</h1>", **html)
    reply = await logged_in.balance()
    assert (reply.status, reply.body) == (403, b"<h1>no</h1>")
    assert reply.headers.getall("Content-Type") == ["text/html"]
    assert (reply.headers.getall("Date"), reply.headers["X-A"]) == (["never"], "b")
    sim.fail(BALANCE, body={"code": "400", "description": "a failure inside a 200"})
    reply = await logged_in.balance()
    assert (reply.status, reply.json["code"]) == (200, "400")
    sim.fail(BALANCE, status=522, body=b"")
    assert (await logged_in.balance()).status == 522
    sim.fail(BALANCE, status=204)
    reply = await logged_in.balance()
    assert (reply.status, reply.body, "Content-Length" in reply.headers) == (204, b"", False)


@pytest.mark.parametrize(("before", "moved"), [(True, 0), (False, 1)])
async def test_a_failure_replaces_the_work_or_only_its_reply(sim, logged_in, before, moved):
    sim.fail(TRANSFER, status=502, before=before)
    assert (await logged_in.transfer()).status == 502
    assert len(sim.ledger) == moved


@pytest.mark.parametrize(("before", "moved"), [(True, 0), (False, 1)])
async def test_a_drop_resets_the_connection_without_a_reply(sim, logged_in, before, moved):
    sim.fail(TRANSFER, drop=True, before=before)
    with pytest.raises(ConnectionResetError):
        await logged_in.transfer()
    assert len(sim.ledger) == moved
    assert sim.calls(TRANSFER)[0].status is None


async def test_a_drop_is_a_tcp_reset_on_the_wire(sim, wire):
    sim.fail("/x", drop=True)
    reader, writer = await wire()
    writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()


@pytest.mark.parametrize("before", [True, False])
async def test_a_delay_alone_is_just_slow(sim, logged_in, waits, before):
    sim.fail(TRANSFER, delay=7.5, before=before)
    assert (await logged_in.transfer()).status == 200
    assert waits == [7.5]


@pytest.mark.parametrize(("before", "moved"), [(True, 0), (False, 1)])
async def test_a_hold_keeps_requests_unanswered_before_or_after_the_work(
    sim, logged_in, before, moved
):
    hold = sim.hold(TRANSFER, before=before)
    tasks = [asyncio.create_task(logged_in.transfer(f"ref-{n}")) for n in range(3)]
    await hold.caught(3)
    assert hold.held == 3
    assert len(sim.ledger) == 3 * moved
    assert not any(task.done() for task in tasks)
    hold.release()
    assert [reply.status for reply in await asyncio.gather(*tasks)] == [200] * 3
    assert (await logged_in.transfer("ref-4")).status == 200


async def test_a_hold_is_released_at_the_end_of_its_context(sim, logged_in):
    with sim.hold(BALANCE):
        task = asyncio.create_task(logged_in.balance())
        await sim.wait_for(BALANCE, 1)
        assert (await logged_in.send("GET", "/v1/transfers/banks")).status == 200
        assert sim.calls(BALANCE)[0].status is None
    assert (await task).status == 200


async def test_waiting_ends_when_the_requests_have_come(sim, logged_in):
    waiting = asyncio.create_task(sim.wait_for(BALANCE, 2))
    await logged_in.balance()
    assert not waiting.done()
    await logged_in.balance()
    await waiting
    await sim.wait_for(BALANCE)
    assert sim.count(BALANCE) == 2


async def test_reset_releases_what_is_held(sim, logged_in):
    hold = sim.hold(BALANCE)
    task = asyncio.create_task(logged_in.balance())
    await hold.caught()
    sim.reset()
    assert (await task).status == 401
