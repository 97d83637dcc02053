"""R3, R4 and the storm: one renewal for all who need it, whoever leaves and whatever it brings."""

import asyncio
import json
import random
import re
import resource
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from harness import environ, reset, served, transfer_body

HERE = Path(__file__).parent
# For R3 and the storm: settings of the proxy. On a busy machine thousands of requests that come
# at once keep it from its sockets for longer than it gives a connection or a token call by default.
SETTINGS: dict[str, object] = {
    "timeouts.connect": 60,
    "timeouts.total": 120,
    "token.call_timeout": 60,
    "token.wait_limit": 90,
    "token.budget": 1000,  # rounds follow one another faster than any rival logs in
}
PATIENCE = 120  # seconds in which a round is over, on any machine
TOGETHER = 200  # fewer than a proxy has connections to its upstream


def rendered(status, body, *lines, media="application/json"):
    """A reply as bytes."""
    head = [f"HTTP/1.1 {status} Status", f"Content-Type: {media}", *lines]
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def envelope(status, code, **fields):
    """A reply in Nomba's envelope."""
    return rendered(status, json.dumps({"code": code, **fields}).encode())


TOKEN = {"access_token": "new", "refresh_token": "refresh", "expires_in": 1800}
UNAUTHORIZED = envelope(401, "401", description="Unauthorized")


def grant(token, **other):
    """The reply of a token call that brings a token."""
    data = TOKEN | {"access_token": token} | other
    return envelope(200, "00", description="Success", data=data)


@dataclass(frozen=True)
class Request:
    """A request as an upstream sees it."""

    login: bool
    name: str  # `?n=` of its target
    token: str


class Line(asyncio.Protocol):
    """A connection to an upstream of ours, which is told of each request and writes the reply."""

    LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
    NAME = re.compile(rb"[?&]n=([\w-]+)")
    TOKEN = re.compile(rb"(?i)\r\nauthorization: Bearer (\S+)\r\n")

    def __init__(self, answer, lines):
        self.answer = answer
        self.lines = lines
        self.data = b""

    def connection_made(self, transport):
        self.transport = transport
        self.lines.add(self)

    def connection_lost(self, exc):
        self.lines.discard(self)

    def data_received(self, data):
        self.data += data
        while True:
            end = self.data.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head = self.data[:end]
            length = self.LENGTH.search(head)
            end += int(length[1]) if length else 0
            if len(self.data) < end:
                return
            self.data = self.data[end:]
            name, token = self.NAME.search(head), self.TOKEN.search(head)
            login = head.startswith(b"POST /v1/auth/token/")
            found = (one[1].decode() if one else "" for one in (name, token))
            self.answer(self, Request(login, *found))

    def write(self, data):
        if self in self.lines:  # uvloop raises where asyncio shrugs
            self.transport.write(data)

    def close(self):
        self.transport.close()

    def reset(self):
        reset(self)

    def get_extra_info(self, name):
        return self.transport.get_extra_info(name)


@asynccontextmanager
async def listening(answer):
    """An upstream: its server and its origin."""
    lines = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Line(answer, lines), "127.0.0.1", 0, backlog=1024
    )
    try:
        yield server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for line in list(lines):
            line.transport.abort()


async def until(condition):
    """Wait for something that has to come."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


# -- R3 and the storm -------------------------------------------------------------------


class SingleSession:
    """An upstream that takes its newest token and no other, and counts what it is sent."""

    def __init__(self, rng):
        self.rng = rng
        self.issued = 0
        self.living = None
        self.taken = Counter()
        self.refused = []  # the names of those refused since the token was revoked
        self.late = 0  # of them, when a newer token was in use already
        self._together = None  # those to be refused at once, while there are too few
        self._last = []  # those to be refused late
        self._gate = None  # token calls that are not to be answered yet
        self._since = 0  # taken since the token was revoked

    def revoke(self, *, gate):
        """End the session; the first to come with its token are refused together.

        With a `gate`, no token is had until `open_gate`, and some are not refused before many
        others have been answered.
        """
        self.living, self.refused, self._since = None, [], 0
        self._together, self._gate = [], [] if gate else None

    def open_gate(self):
        lines, self._gate = self._gate, None
        for line in lines:
            self._issue(line)

    def answer(self, line, request):
        if request.login:
            if self._gate is not None:
                self._gate.append(line)
            else:
                self._issue(line)
        elif request.token == self.living:
            self.taken[request.name] += 1
            self._since += 1
            line.write(rendered(200, request.name.encode(), media="text/plain"))
            if self._since == TOGETHER:
                self._refuse(self._last)
        elif self._together is None:
            self._refuse([(line, request)])
        else:
            self._together.append((line, request))
            if len(self._together) == TOGETHER:
                many, self._together = self._together, None
                self.rng.shuffle(many)
                last = TOGETHER // 10 if self._gate is not None else 0
                self._last = many[:last]
                self._refuse(many[last:])

    def _issue(self, line):
        self.issued += 1
        self.living = f"token-{self.issued}"
        line.write(grant(self.living))

    def _refuse(self, many):
        for line, request in many:
            self.refused.append(request.name)
            self.late += self._since > 0
            line.write(UNAUTHORIZED)


class Crowd:
    """Callers in a process of their own (`callers.py`)."""

    def __init__(self, process):
        self.process = process

    async def said(self):
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line, "the callers' process has ended"
        return line.decode().strip()

    async def answers(self, session):
        """What they got, once all of them are answered."""
        try:
            return json.loads(await self.said())
        except TimeoutError:
            raise AssertionError(
                f"not all are answered: {session.issued} tokens were issued, "
                f"{len(session.refused)} requests refused, {session.taken.total()} taken"
            ) from None

    async def order(self, *words, done):
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        assert await self.said() == done


@asynccontextmanager
async def crowd(address, count):
    host, _, port = address.rpartition(":")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "callers.py"), host, port, str(count)),
        env=environ(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        callers = Crowd(process)
        assert await callers.said() == "ready"
        yield callers
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 30)


def alone(origin):
    """A proxy in a process of its own, which nothing slows down: coverage is not measured in it."""
    env = {
        "NOMBA_CLIENT_ID": "c",
        "NOMBA_CLIENT_SECRET": "s",
        "NOMBA_ACCOUNT_ID": "a",
        "NOMBA_BASE_URL": origin,
        "COVERAGE_PROCESS_START": "",
        "COVERAGE_PROCESS_CONFIG": "",
    }
    settings = (f"--set={key}={value}" for key, value in SETTINGS.items())
    return served(*settings, stdout=asyncio.subprocess.DEVNULL, **env)


@pytest.fixture
def room():
    """`room(wanted)`: for how many connections there are descriptors, more being asked for.

    Processes that are started afterwards have as many.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))

    def fitting(wanted):
        # Beside its callers a proxy has 256 connections to its upstream, which has as many.
        callers = min(wanted, before[1] - 700)
        if callers < 2 * TOGETHER:
            pytest.skip(f"only {before[1]} file descriptors: raise the hard limit (ulimit -Hn)")
        return callers

    yield fitting
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def asked(proxy, path):
    async with aiohttp.request("GET", f"http://{proxy.admin}{path}") as reply:
        assert reply.status == 200
        return await reply.text()


async def caught_up(proxy):
    """Wait until the proxy has seen what came before: then it answers this."""
    await asked(proxy, "/livez")


async def until_gone(proxy, count):
    """Wait until the proxy has told of so many callers that left while they waited."""
    told = -1
    async with asyncio.timeout(PATIENCE):
        while told != count:
            lines = (await asked(proxy, "/metrics")).splitlines()
            refused = [one for one in lines if one.startswith("nomba_proxy_requests_total{")]
            refused = [one for one in refused if 'code_class="4xx"' in one]
            told = sum(float(one.rpartition(" ")[2]) for one in refused)


def asked_for(wanted, callers):
    return "" if callers == wanted else f" (of {wanted}: NO MORE FILE DESCRIPTORS)"


@pytest.mark.timeout(3600)
async def test_r3_a_storm_of_401_costs_one_renewal_a_round_and_no_caller_its_answer(
    room, size, figure
):
    wanted, rounds, rng = size(1000, 5000), size(20, 100), random.Random(3)
    callers = room(wanted)
    session = SingleSession(rng)
    answers, left, refused, renewals = Counter(), 0, 0, []
    async with (
        listening(session.answer) as (_, origin),
        alone(origin) as proxy,
        crowd(proxy.address, callers) as crowded,
    ):
        await until(lambda: session.issued)
        for number in range(rounds):
            before = session.issued
            session.revoke(gate=True)
            await crowded.order("ask", f"r{number}", done="asked")
            await until(lambda: session.refused)
            await caught_up(proxy)
            # The one whose refusal began the renewal, others that were refused, and any.
            waiting = [int(name.rpartition("-")[2]) for name in session.refused]
            some = waiting[: callers // 200]
            leave = {*some, *rng.sample(range(callers), callers // 100 - len(some))}
            await crowded.order("leave", *leave, done="left")
            await caught_up(proxy)
            session.open_gate()
            answers.update(await crowded.answers(session))
            left, refused = left + len(leave), refused + len(session.refused)
            renewals.append(session.issued - before)
        await until_gone(proxy, left)
    failed = answers.total() - answers["200 answered"] - answers["left"]
    figure(
        "R3",
        f"{callers} callers{asked_for(wanted, callers)} × {rounds} rounds: "
        f"{sum(renewals)} renewals, {failed} failed; {refused} times 401, {session.late} of them "
        f"late, {left} hung up while they waited",
    )
    assert renewals == [1] * rounds
    assert answers == {"200 answered": callers * rounds - left, "left": left}
    assert session.late >= rounds * TOGETHER // 10
    assert set(session.taken.values()) == {1}
    # Who left is not served, unless that was seen a moment too late.
    assert 0 <= len(session.taken) - (callers * rounds - left) <= left // 10


@pytest.mark.timeout(3600)
async def test_a_storm_on_a_revoked_token_costs_one_renewal_and_no_caller_its_answer(
    room, size, figure
):
    wanted = size(10_000, 10_000)
    callers = room(wanted)
    session = SingleSession(random.Random(10_000))
    async with (
        listening(session.answer) as (_, origin),
        alone(origin) as proxy,
        crowd(proxy.address, callers) as crowded,
    ):
        await until(lambda: session.issued)
        session.revoke(gate=False)
        await crowded.order("ask", "storm", done="asked")
        answers = Counter(await crowded.answers(session))
    figure(
        "STORM",
        f"{callers} requests at once{asked_for(wanted, callers)} on a revoked token: "
        f"{session.issued - 1} renewal, {callers - answers['200 answered']} failed; "
        f"{len(session.refused)} times 401, {session.late} of them late",
    )
    assert session.issued == 2
    assert answers == {"200 answered": callers}
    assert set(session.taken.values()) == {1}


# -- R4 ---------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><body><h1>Error 1020</h1>Access denied</body></html>"
REQUESTS = {
    "read": ("GET", "/v1/accounts/balance", None),
    "write": ("POST", "/v1/checkout/order", b'{"order":{}}'),
    "money": ("POST", "/v2/transfers/bank", transfer_body()),
}


# What refuses a token and proves that nothing was done, and what does not prove it.
PROVEN = (UNAUTHORIZED, rendered(401, PAGE, media="text/html"), rendered(401, b""))
UNPROVEN = (
    envelope(500, "500", detail="Internal Server Error: INTERNAL: JWT expired at 2026-07-07."),
    envelope(400, "400", description="JWT expired at 2026-07-07T23:10:48Z"),
    envelope(200, "401", description="Unauthorized"),
    envelope(200, "02", description="Token expired"),
)


def brings(data):
    return envelope(200, "00", data=data)


# Replies to a token call that bring no token.
FRUITLESS = (
    *(envelope(status, str(status)) for status in (400, 401, 403, 404, 429, 500, 502, 503)),
    *(rendered(status, PAGE, media="text/html") for status in (200, 403, 429, 503)),
    *(envelope(200, code, description="no") for code in ("01", "02", "401", "99", None, 0, [])),
    *(rendered(200, body) for body in (b"", b"null", b"[]", b'"00"', b"\xff\xfe", b"[" * 5000)),
    rendered(200, grant("new").partition(b"\r\n\r\n")[2][:-20]),
    rendered(200, b"x" * (2 << 20)),
    *(envelope(200, code, data=TOKEN) for code in ("01", "02", "401", "99", None, 0, "000")),
    *(envelope(status, "00", data=TOKEN) for status in (400, 401, 403, 429, 500, 503)),
    rendered(307, b"", "Location: http://127.0.0.1:1/v1/auth/token/issue"),
    *map(brings, (None, [], "new", 7, {}, {"access_token": None}, {"access_token": ""})),
    *(brings({"access_token": odd}) for odd in (7, True, ["new"], {"a": 1}, "a b", "a\r\nb", "ü")),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n",
)


def soon(act):
    asyncio.get_running_loop().call_later(0.05, act)


def trickle(line):
    line.write(b" ")
    if line in line.lines:
        soon(lambda: trickle(line))


def fruitless(case, line):
    line.write(case.rng.choice(FRUITLESS))


def cut(case, line):
    whole = grant("new")
    line.write(whole[: case.rng.randrange(len(whole))])
    case.rng.choice((line.close, line.reset))()


def hang(case, line):
    whole = grant("new")
    line.write(whole[: case.rng.choice((0, 0, 10, len(whole) - 1))])


def slowly(case, line):
    line.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    trickle(line)


def odd(case, line):
    line.write(grant("new", **case.rng.choice(ODD)))


def recovers(case, line):
    if case.calls == 1:
        fruitless(case, line)
    else:
        line.write(grant("new"))


# What a token may come with that is no reason to use it, nor one not to.
ODD = (
    *({"refresh_token": odd} for odd in (None, 7, [], "")),
    *({"expiresAt": odd} for odd in ("soon", None, [], -1, "2022-07-08T14:33:00Z", 1e400)),
    *({"expires_in": odd} for odd in ("soon", None, [], -1, 0, 1e9)),
    *({"businessId": odd} for odd in (None, 7, "another")),
)
# What a token call may do, how often one does it, and whether a token comes of it.
RENEWALS = {
    "refused": (2, "no", None),  # there is nobody to connect to
    "fruitless": (8, "no", fruitless),
    "cut": (2, "no", cut),
    "reset": (1, "no", lambda case, line: line.reset()),
    "closed": (1, "no", lambda case, line: line.close()),
    "hangs": (2, "no", hang),
    "trickles": (1, "no", slowly),
    "old token": (2, "no", lambda case, line: line.write(grant("old"))),
    "dead on arrival": (
        *(1, "no"),
        lambda case, line: soon(lambda: line.write(grant(f"new-{case.calls}", expires_in=0.01))),
    ),
    "odd": (2, "maybe", odd),
    "recovers": (2, "maybe", recovers),
    "good": (4, "yes", lambda case, line: line.write(grant("new"))),
    "late": (2, "yes", lambda case, line: soon(lambda: line.write(grant("new")))),
}
ANSWERED, UNKNOWN = "answered", "unknown"
# What may become of the replay, and what the caller is told: of a read, of anything else.
REPLAYS = {
    "200": (rendered(200, b'{"code":"00"}'), (200, ANSWERED), (200, ANSWERED)),
    "401": (UNAUTHORIZED, (401, ANSWERED), (401, ANSWERED)),
    "403": (rendered(403, PAGE, media="text/html"), (403, ANSWERED), (403, ANSWERED)),
    "503": (envelope(503, "503"), (503, ANSWERED), (503, ANSWERED)),
    "unproven": (UNPROVEN[0], (500, ANSWERED), (500, UNKNOWN)),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Le", (502, UNKNOWN), (502, UNKNOWN)),
    "reset": (b"HTTP/1.1", (502, UNKNOWN), (502, UNKNOWN)),
    "hangs": (b"", (504, UNKNOWN), (504, UNKNOWN)),
    "not sent": (b"", (502, "refused"), (502, "refused")),
}


class Case:
    """An upstream that refuses a token, and then misbehaves in the renewal or the replay."""

    def __init__(self, number):
        self.rng = rng = random.Random(f"R4 {number}")
        self.kind = rng.choice(list(REQUESTS))
        self.burst = rng.choice((1, 1, 2, 5))
        self.used = rng.random() < 0.5  # whether the token was ever good for something
        self.proven = rng.random() < 0.8
        self.refusal = rng.choice(PROVEN if self.proven else UNPROVEN)
        self.renewal = rng.choices(list(RENEWALS), [one[0] for one in RENEWALS.values()])[0]
        self.replay = rng.choice(list(REPLAYS))
        self.name = f"case {number}: {self.kind}, renewal {self.renewal}, replay {self.replay}"
        self.refused = False
        self.calls = 0  # of tokens, after the refusal
        self.tokens = {f"r{at}": [] for at in range(self.burst)}  # those each request came with
        self.worked = Counter()  # how often what each asks for was or may have been done
        self._first = []
        self.stop_listening = None

    def limits(self):
        """Settings: what is to be waited for in vain is not waited for long."""
        limits = {"token__call_timeout": 5, "token__wait_limit": 5}
        limits["timeouts__first_byte"] = 4 if self.replay == "hangs" else 10
        if self.renewal in {"hangs", "trickles"}:
            short = self.rng.choice(((0.5, 1), (1, 0.5)))
            limits = dict(zip(limits, (*short, 60), strict=True))
        return limits

    def answer(self, line, request):
        if request.login:
            if not self.refused:
                line.write(grant("old"))
                return
            self.calls += 1
            if self.replay == "not sent":
                self.stop_listening()
            RENEWALS[self.renewal][2](self, line)
        elif request.name not in self.tokens:
            line.write(rendered(200, b"ok"))
        elif not self.tokens[request.name]:
            self.tokens[request.name].append(request.token)
            self.worked[request.name] += not self.proven
            self._first.append(line)
            if len(self._first) == self.burst:  # all of them came with the token
                self._refuse()
        else:
            self.tokens[request.name].append(request.token)
            self._answer_replay(line, request)

    def _refuse(self):
        self.refused = True
        if self.renewal == "refused":
            self.stop_listening()
        refusal, closing = self.refusal, self.replay == "not sent"
        if closing:  # so that there is no connection to replay over
            refusal = refusal.replace(b"Content-L", b"Connection: close\r\nContent-L", 1)
        for line in self._first:
            line.write(refusal)
            if closing:
                line.close()

    def _answer_replay(self, line, request):
        self.worked[request.name] += self.replay != "401"
        line.write(REPLAYS[self.replay][0])
        if self.replay == "cut":
            line.close()
        if self.replay == "reset":
            soon(line.reset)  # so that what was sent is not lost with it

    def rows(self):
        """The rows of the table that fit, as status and outcome."""
        reads = self.kind == "read"
        if not self.proven and not reads:
            return {(int(self.refusal[9:12]), UNKNOWN)}
        unavailable, told = (503, "refused"), REPLAYS[self.replay][1 if reads else 2]
        return {"no": {unavailable}, "maybe": {unavailable, told}, "yes": {told}}[
            RENEWALS[self.renewal][1]
        ]

    def wrong(self, name, reply):
        """What is wrong with the answer to a request."""
        sent, outcome = self.tokens[name], reply.outcome
        if (reply.status, outcome) not in self.rows():
            yield f"told {reply.status} {outcome}, not one of {self.rows()}"
        if len(sent) > 2 or len(set(sent)) < len(sent):
            yield f"sent with {sent}"
        if self.kind != "read" and self.worked[name] > 1:
            yield f"done {self.worked[name]} times"
        if outcome == ANSWERED and len(sent) != 2:
            yield "told of a replay that was none"
        if outcome == "refused" and len(sent) != 1:
            yield "told refused after a replay"
        expected = {
            (503, "refused"): "token_unavailable",
            (502, "refused"): "upstream_unreachable",
            (502, UNKNOWN): "upstream_broken",
            (504, UNKNOWN): "upstream_timeout",
        }.get((reply.status, outcome))
        delivered = REPLAYS[self.replay][0] if len(sent) == 2 else self.refusal
        if expected is None and reply.body != delivered.partition(b"\r\n\r\n")[2]:
            yield f"got the body {reply.body}"
        if reply.get("Nomba-Proxy-Error") != expected:
            yield f"called {reply.get('Nomba-Proxy-Error')}"
        if expected == "token_unavailable" and not int(reply.get("Retry-After") or 0):
            yield "no Retry-After"


@pytest.mark.timeout(3600)
async def test_r4_whatever_a_renewal_brings_there_is_one_replay_and_an_answer_in_time(
    start_proxy, size, figure
):
    total = size(400, 4000)
    cases, wrong, told, replays = iter(map(Case, range(total))), [], Counter(), 0

    async def run(case):
        nonlocal replays
        method, path, body = REQUESTS[case.kind]
        limits = case.limits()
        patience = 15 + limits["token__wait_limit"]
        if case.renewal not in {"hangs", "trickles"}:
            patience += limits["timeouts__first_byte"]
        async with listening(case.answer) as (server, origin):
            case.stop_listening = server.close
            proxy = await start_proxy(base_url=origin, **limits)
            await until(lambda: proxy.log.lines("token_renewed"))
            if case.used:
                assert (await proxy.get("/v1/accounts/balance?n=before")).status == 200

            async def ask(name):
                reply = await asyncio.wait_for(
                    proxy.send(method, f"{path}?n={name}", body=body), patience
                )
                told[f"{reply.status} {reply.outcome}"] += 1
                wrong.extend(f"{case.name}: {problem}" for problem in case.wrong(name, reply))

            await asyncio.gather(*map(ask, case.tokens))
            # Back-off holds: on its way to 10 s there are five calls.
            if case.calls > 6:
                wrong.append(f"{case.name}: {case.calls} token calls")
            replays += sum(len(sent) == 2 for sent in case.tokens.values())
            faults = proxy.log.lines("internal_fault") + proxy.log.lines("server_fault")
            wrong.extend(f"{case.name}: {fault}" for fault in faults)
            await proxy.stack.aclose()

    async def work():
        for case in cases:
            await run(case)

    await asyncio.gather(*(work() for _ in range(16)))
    figure(
        "R4",
        f"{total} renewals that fail, hang or bring rubbish, {told.total()} requests: "
        f"{len(wrong)} answered wrongly, {replays} replays ({dict(told)})",
    )
    assert wrong == []
    # Every row of the table was met.
    assert {"503 refused", "502 refused", "502 unknown", "504 unknown"} <= set(told)
    assert {"200 answered", "401 answered", "500 answered", "500 unknown"} <= set(told)
    assert replays > total / 4
