"""What a process does that was stopped for so long that others have taken its lease."""

import asyncio

import pytest

from proxy.core.lifetime import Lifetime
from proxy.core.secret import Secret
from proxy.core.session import granted
from proxy.tokens.nomba import IssuerError
from proxy.tokens.store import MemoryStore

ORIGIN = "https://issuer.test"


class Overtaken(MemoryStore):
    """A store in which others may have written meanwhile."""

    theirs = None

    def __init__(self):
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def save(self, held):
        await self.answers.wait()
        if self.theirs is not None:
            held, self.theirs = self.theirs, None
        return await super().save(held)


@pytest.fixture
def overtaken():
    return Overtaken()


@pytest.fixture
def store(overtaken):
    return lambda: overtaken


@pytest.fixture
def theirs(time, overtaken):
    """The next token, as another process brought it."""
    clocks = time.clocks
    lifetime = Lifetime.begin(2000, now=clocks.alive(), wall=clocks.wall(), early=300, jitter=0)
    access, refresh = (Secret(text, origin=ORIGIN) for text in ("theirs", "refresh"))

    def bring(held):
        return granted(
            held, access=access, refresh=refresh, lifetime=lifetime, secret="digest", now=0.0
        )

    return bring


async def test_who_was_overtaken_while_its_refresh_failed_does_not_log_in(
    session, overtaken, theirs, issuer, time
):
    issuer.failing["refresh"] = IssuerError("refresh: HTTP 401", reason="credentials")
    refresh = issuer.hold("refresh")
    await time.advance(760)
    overtaken.theirs = theirs(overtaken._held)
    refresh.set()
    await time.advance(1)
    assert issuer.names == ["issue", "refresh"]
    assert session.lend().access.reveal(to=ORIGIN) == "theirs"


async def test_who_was_overtaken_while_it_stopped_says_so(session, overtaken, theirs, issuer):
    overtaken.theirs = theirs(overtaken._held)
    assert "another process" in await session.revoke(stop=True)
    assert issuer.names == ["issue"]
    assert session.status().state == "living"


async def test_what_failed_for_who_was_overtaken_fails_nobody(
    session, overtaken, theirs, down, issuer, time
):
    issuer.failing = down
    issue = issuer.hold("issue")
    await time.advance(1010)
    overtaken.theirs = theirs(overtaken._held)
    overtaken.answers.clear()
    issue.set()
    await time.advance(0)
    borrower = asyncio.create_task(session.borrow())
    await time.advance(0)
    overtaken.answers.set()
    assert (await borrower).access.reveal(to=ORIGIN) == "theirs"
