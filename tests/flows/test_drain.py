"""Stopping: nothing is lost that has come, nobody is kept waiting for what does not come."""

import asyncio
import json
import select
import signal
import socket
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession
from harness import read_reply, served

from proxy.calls import RawReply
from proxy.drain import Drain
from proxy.server import TrafficServer

BALANCE = "/v1/accounts/balance"
TRANSFER = "/v2/transfers/bank"
GET = f"GET {BALANCE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
BODY = b'{"some": "upload of a few parts"}'
UPLOAD = (
    f"POST /v1/accounts/virtual HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode()
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"


class Caller:
    """A caller that keeps one connection as long as it may."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self):
        return await asyncio.wait_for(read_reply(self.reader), 20)

    async def ask(self, request: bytes = GET):
        self.writer.write(request)
        return await self.reply()

    async def closed(self) -> bool:
        """Whether the connection ends cleanly, with nothing before it."""
        return await asyncio.wait_for(self.reader.read(), 20) == b""


@asynccontextmanager
async def calling(address):
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


def closes(reply) -> bool:
    return reply.get("Connection") == "close"


def stopping(proxy) -> asyncio.Task:
    return asyncio.create_task(proxy.stack.aclose())


async def over(task: asyncio.Task) -> None:
    """Wait for what is over long before any limit."""
    await asyncio.wait_for(task, 20)


class Load:
    """Callers that ask and ask, over connections they keep, and what became of each request."""

    def __init__(self, address) -> None:
        self.address = address
        self.tally = Counter()
        self._done = asyncio.Event()

    @asynccontextmanager
    async def running(self, *, reads: int, uploads: int):
        tasks = [asyncio.create_task(self._call(self._read)) for _ in range(reads)]
        tasks += [asyncio.create_task(self._call(self._upload)) for _ in range(uploads)]
        try:
            yield
        finally:
            self._done.set()
            await asyncio.gather(*tasks)

    async def some(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = self.tally["answered"] + count
        for _ in range(2000):
            if self.tally["answered"] >= wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.tally)

    async def _call(self, send) -> None:
        caller, kept = None, False
        while not self._done.is_set():
            try:
                if caller is None:
                    kept = False
                    caller = Caller(*await asyncio.open_connection(*self.address))
            except ConnectionError:
                self.tally["refused"] += 1
                await asyncio.sleep(0.02)
                continue
            try:
                await send(caller.writer)
                reply = await caller.reply()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                # A connection that was never accepted ends like this, once, on its first request.
                lost = kept or getattr(error, "partial", b"")
                self.tally["lost" if lost else "unheard"] += 1
                kept = False
            else:
                self.tally["answered" if reply.status == 200 else reply.status] += 1
                kept = not closes(reply)
                if not kept:
                    assert await caller.closed()
            if not kept:
                caller.writer.close()
                caller = None
        if caller is not None:
            caller.writer.close()

    @staticmethod
    async def _read(writer) -> None:
        writer.write(GET)

    @staticmethod
    async def _upload(writer) -> None:
        writer.write(UPLOAD)
        for at in range(0, len(BODY), 8):
            await asyncio.sleep(0.01)
            writer.write(BODY[at : at + 8])


# -- what has come is answered ---------------------------------------------------------


async def test_no_request_is_lost_while_a_proxy_is_told_to_stop(start_proxy, upstream):
    upstream.answer = upstream.reply_with(OK)
    for _ in range(3):
        upstream.requests.clear()
        proxy = await start_proxy(base_url=upstream.origin)
        load = Load(proxy.address)
        async with load.running(reads=12, uploads=4):
            await load.some(40)
            await over(stopping(proxy))
            assert load.tally["answered"] == len(upstream.requests)
        assert set(load.tally) <= {"answered", "refused", "unheard"}


async def test_no_request_is_lost_when_a_process_gets_sigterm(upstream):
    upstream.answer = upstream.reply_with(OK)
    env = {
        "NOMBA_CLIENT_ID": "id",
        "NOMBA_CLIENT_SECRET": "secret",
        "NOMBA_ACCOUNT_ID": "account",
        "NOMBA_BASE_URL": upstream.origin,
    }
    async with served(**env) as proxy:
        host, _, port = proxy.address.partition(":")
        load = Load((host, int(port)))
        async with load.running(reads=12, uploads=4):
            await load.some(40)
            proxy.process.send_signal(signal.SIGTERM)
            out, _ = await asyncio.wait_for(proxy.process.communicate(), 20)
    assert proxy.process.returncode == 0
    assert set(load.tally) <= {"answered", "refused", "unheard"}
    lines = [json.loads(line) for line in out.splitlines()]
    told = Counter(line["outcome"] for line in lines if line["event"] == "exchange")
    assert told == {"answered": load.tally["answered"]}
    assert load.tally["answered"] == len(upstream.requests)


async def test_every_reply_of_a_draining_proxy_ends_its_connection(proxy):
    requests = {
        GET: 200,
        b"GET /a/../b HTTP/1.1\r\nHost: localhost\r\n\r\n": 400,
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n": 200,
        GET.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n"): 200,
    }
    callers = []
    for request, status in requests.items():
        caller = Caller(*await asyncio.open_connection(*proxy.address))
        reply = await caller.ask(request)
        assert (reply.status, closes(reply)) == (status, False)
        callers.append(caller)
    await proxy.running.drain()
    for (request, status), caller in zip(requests.items(), callers, strict=True):
        reply = await caller.ask(request)
        assert (reply.status, closes(reply)) == (status, True)
        assert await caller.closed()
        caller.writer.close()


async def test_an_upload_goes_on_and_is_answered(proxy, simulator):
    async with calling(proxy.address) as caller, calling(proxy.address) as idle:
        caller.writer.write(UPLOAD + BODY[:5])
        await idle.ask()
        stop = stopping(proxy)
        assert await idle.closed()  # so the drain has gone on for a while
        caller.writer.write(BODY[5:])
        reply = await caller.reply()
        assert (reply.outcome, closes(reply)) == ("answered", True)
        await over(stop)
    assert [call.body for call in simulator.calls("/v1/accounts/virtual")] == [BODY]


async def test_a_head_that_has_begun_to_come_is_waited_for(proxy):
    async with calling(proxy.address) as caller, calling(proxy.address) as idle:
        await caller.ask()
        caller.writer.write(GET[:20])
        await idle.ask()
        stop = stopping(proxy)
        assert await idle.closed()
        reply = await caller.ask(GET[20:])
        assert (reply.status, closes(reply)) == (200, True)
        await over(stop)


async def test_a_pipelined_request_that_is_here_is_answered_too(proxy, simulator):
    await proxy.get(BALANCE)
    with simulator.hold(BALANCE) as hold:
        async with calling(proxy.address) as caller:
            caller.writer.write(GET * 3)
            await hold.caught(1)
            await proxy.running.drain()
            hold.release()
            replies = [await caller.reply() for _ in range(3)]
            assert [(reply.status, closes(reply)) for reply in replies] == [
                (200, False),
                (200, False),
                (200, True),
            ]
            assert await caller.closed()


async def test_what_moves_money_is_heard_out_though_its_caller_has_gone(proxy, simulator):
    with simulator.hold(TRANSFER) as hold:
        call = asyncio.create_task(proxy.transfer())
        await hold.caught(1)
        call.cancel()
        await asyncio.wait((call,))
        stop = stopping(proxy)
        await asyncio.sleep(0.1)
        hold.release()
        await over(stop)
    (line,) = await proxy.exchanges()
    assert (line["outcome"], line["upstream"]) == ("answered", "nomba")


# -- nobody is waited for who does not come --------------------------------------------


async def test_an_idle_connection_is_closed_long_before_the_limit(start_proxy):
    proxy = await start_proxy(drain__limit="3600")
    async with calling(proxy.address) as caller, calling(proxy.address) as silent:
        await caller.ask()
        caller.writer.write(b"\r\n")  # as some send behind a body
        stop = stopping(proxy)
        assert await caller.closed()
        assert await silent.closed()
        await over(stop)


async def test_the_rest_of_a_refused_body_is_not_waited_for_once_its_caller_has_left(proxy):
    async with calling(proxy.address) as caller:
        large = UPLOAD.replace(b"Length: ", b"Length: 99999999")
        assert (await caller.ask(large + BODY)).status == 413
    await asyncio.wait_for(stopping(proxy), 5)  # half of what aiohttp reads on for


async def test_a_draining_proxy_accepts_nobody_while_it_finishes(proxy, simulator):
    await proxy.get(BALANCE)
    with simulator.hold(BALANCE) as hold:
        call = asyncio.create_task(proxy.get(BALANCE))
        await hold.caught(1)
        await proxy.running.drain()
        await proxy.running.drain()  # a second time means nothing
        with pytest.raises(ConnectionRefusedError):
            await proxy.get(BALANCE)
        assert not call.done()
        hold.release()
        assert (await call).status == 200


async def test_what_comes_to_nothing_is_cut_at_the_limit(start_proxy, simulator):
    proxy = await start_proxy(drain__limit="0.2")
    await proxy.get(BALANCE)
    async with (
        calling(proxy.address) as idle,
        calling(proxy.address) as head,
        calling(proxy.address) as body,
    ):
        await idle.ask()
        head.writer.write(GET[:20])
        body.writer.write(UPLOAD + BODY[:5])
        await asyncio.sleep(0.05)
        await over(stopping(proxy))
        assert await idle.closed()
        assert await head.closed()
        assert await body.closed()
    line = (await proxy.exchanges(3))[-1]
    assert (line["error"], line["outcome"], line["attempts"]) == ("cancelled", "not_sent", 0)


@pytest.mark.parametrize("heard_out", [True, False])
async def test_what_is_cut_is_logged_with_the_reference_to_ask_for_it_by(
    start_proxy, simulator, upstream, heard_out
):
    """Before its reply has begun, and while its reply is delivered."""
    proxy = await start_proxy(drain__limit="0.3", base_url=None if heard_out else upstream.origin)

    async def begin(head, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nsome of it")
        await asyncio.sleep(20)

    upstream.answer = begin
    with simulator.hold(TRANSFER) as hold:
        call = asyncio.create_task(proxy.transfer("ref-7"))
        if heard_out:
            await hold.caught(1)
        while not heard_out and not upstream.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await over(stopping(proxy))
        await asyncio.wait((call,))
        assert isinstance(call.exception(), ConnectionError | asyncio.IncompleteReadError)
    (line,) = proxy.log.lines("exchange")
    assert (line["error"], line["outcome"], line["reference"]) == ("cancelled", "unknown", "ref-7")


async def test_an_end_that_is_announced_takes_callers_until_it_begins(start_proxy):
    proxy = await start_proxy(drain__delay="3")
    await proxy.get(BALANCE)
    async with calling(proxy.address) as caller, ClientSession(proxy.admin) as admin:
        announcing = asyncio.create_task(proxy.running.announce())
        while (await admin.get("/readyz")).status == 200:
            await asyncio.sleep(0.01)
        assert "draining" in await (await admin.get("/readyz")).text()
        assert (await admin.get("/livez")).status == 200
        assert not closes(await caller.ask())
        assert not closes(await proxy.get(BALANCE))  # who comes now is accepted
        assert not announcing.done()
        await over(announcing)
        await proxy.running.drain()
        assert closes(await caller.ask())
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*proxy.address)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", ["term", "int", "twice"])
async def test_a_sigterm_is_announced_and_ctrl_c_or_a_second_signal_waits_for_nothing(how, workers):
    delay = "4" if how == "term" else "3600"
    async with served(f"--workers={workers}", "--simulate", NOMBA_PROXY_DRAIN_DELAY=delay) as proxy:
        async with ClientSession(f"http://{proxy.admin}") as admin:
            while (await admin.get("/readyz")).status != 200:
                await asyncio.sleep(0.05)
            proxy.process.send_signal(signal.SIGINT if how == "int" else signal.SIGTERM)
            if how != "int":
                while (await admin.get("/readyz")).status == 200:
                    await asyncio.sleep(0.01)
                host, _, port = proxy.address.partition(":")
                async with calling((host, int(port))) as caller:
                    assert (await caller.ask()).status == 200
            if how == "twice":
                proxy.process.send_signal(signal.SIGTERM)
        out, _ = await asyncio.wait_for(proxy.process.communicate(), 30)
    assert proxy.process.returncode == (how == "twice")
    told = [json.loads(line) for line in out.splitlines() if b'"draining"' in line]
    assert [one["delay_seconds"] for one in told] == [0.0 if how == "int" else float(delay)]


async def test_what_is_cut_after_its_caller_has_gone_is_logged_as_unknown(start_proxy, simulator):
    proxy = await start_proxy(drain__limit="0.3")
    with simulator.hold(TRANSFER) as hold:
        call = asyncio.create_task(proxy.transfer())
        await hold.caught(1)
        call.cancel()
        await asyncio.wait((call,))
        await asyncio.sleep(0.05)
        await over(stopping(proxy))
        (line,) = proxy.log.lines("exchange")
    assert (line["error"], line["outcome"], line["attempts"]) == ("cancelled", "unknown", 1)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_reply_cut_at_the_limit_is_seen_to_be_cut(start_proxy, upstream, version):
    async def answer(head, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe beginning")
        await writer.drain()
        await asyncio.sleep(30)

    upstream.answer = answer
    proxy = await start_proxy(base_url=upstream.origin, drain__limit="0.3")
    async with calling(proxy.address) as caller:
        caller.writer.write(GET.replace(b"1.1", version))
        await caller.reader.readuntil(b"the beginning")
        await over(stopping(proxy))
        if version == b"1.0":
            with pytest.raises(ConnectionResetError):
                await caller.reader.read()
        else:
            assert not (await caller.reader.read()).endswith(b"0\r\n\r\n")
    (line,) = await proxy.exchanges()
    assert (line["error"], line["outcome"]) == ("cancelled", "unknown")


async def test_what_is_not_written_yet_at_the_limit_is_seen_to_be_cut():
    async def answer(call):  # more than anybody's buffers take, and only the end tells the end
        call.connection.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 16 * 1024 * 1024)
        return RawReply()

    begun = asyncio.Event()
    server = TrafficServer(answer, observe=list, emit=list, is_draining=begun.is_set)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    drain = Drain(
        [listening], server=server, announced=asyncio.Event(), begun=begun, delay=0, limit=0.2
    )
    async with calling(listening.sockets[0].getsockname()) as caller:
        caller.writer.write(GET)
        await caller.reader.readexactly(10)
        await drain.end(None, None, None)
        with pytest.raises(ConnectionResetError):
            await caller.reader.read()


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_cancelled_drain_cuts_at_once(start_proxy, simulator, when):
    proxy = await start_proxy(drain__limit="3600")
    with simulator.hold(TRANSFER) as hold:
        call = asyncio.create_task(proxy.transfer())
        await hold.caught(1)
        if when == "before":
            reason = asyncio.CancelledError()
            stop = asyncio.create_task(proxy.stack.__aexit__(type(reason), reason, None))
        else:
            stop = stopping(proxy)
            await asyncio.sleep(0.1)
            stop.cancel()
        await asyncio.wait((stop,), timeout=20)
        assert stop.done()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await call
    (line,) = await proxy.exchanges()
    assert (line["error"], line["outcome"]) == ("cancelled", "unknown")


# -- one after another on the same socket ----------------------------------------------


@pytest.fixture
def listener():
    """A listening socket that outlives the proxies that take requests from it."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


async def test_who_comes_between_two_proxies_is_served_by_the_second(
    start_proxy, upstream, listener
):
    upstream.answer = upstream.reply_with(OK)
    address = listener.getsockname()
    first = await start_proxy(base_url=upstream.origin, sock=listener.dup())
    assert first.address == address
    async with calling(address) as early:
        await early.ask()
        await first.running.drain()
        async with calling(address) as between:
            between.writer.write(GET)
            assert closes(await early.ask())
            await over(stopping(first))
            second = await start_proxy(base_url=upstream.origin, sock=listener.dup())
            reply = await between.reply()
            assert (reply.status, closes(reply)) == (200, False)
    assert len(await first.exchanges(2)) == 2
    assert len(await second.exchanges()) == 1


@pytest.mark.parametrize("begins", range(12))
async def test_a_connection_is_either_accepted_and_answered_or_left_alone(
    start_proxy, upstream, listener, begins
):
    upstream.answer = upstream.reply_with(OK)
    proxy = await start_proxy(base_url=upstream.origin, sock=listener.dup())
    with socket.socket() as sock:
        for turn in range(12):  # of the loop, in which a connection is accepted step by step
            if turn == begins:
                stop = stopping(proxy)
            if turn == 6:
                sock.connect(listener.getsockname())
                sock.send(GET)
            await asyncio.sleep(0)
        await over(stop)
        if select.select([listener], [], [], 0)[0]:
            listener.accept()[0].close()
        else:
            sock.setblocking(False)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_ten_rolling_restarts_under_load_lose_nothing(start_proxy, upstream, listener):
    upstream.answer = upstream.reply_with(OK)
    load = Load(listener.getsockname())
    proxy = await start_proxy(base_url=upstream.origin, sock=listener.dup())
    async with load.running(reads=12, uploads=6):
        for _ in range(10):
            await load.some(30)
            await proxy.running.drain()
            old, proxy = proxy, await start_proxy(base_url=upstream.origin, sock=listener.dup())
            await over(stopping(old))
    assert set(load.tally) == {"answered"}
    assert load.tally["answered"] == len(upstream.requests)
