"""Ask Nomba with a token, without ending anybody's session.

A login ends the session of everybody else (facts, section 1). So a proxy that runs is asked first,
then the store; only where neither has a session is one made, and given back in the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from proxy.app.presence import who_is_present
from proxy.app.sessions import alive_clock, make_auth
from proxy.core.heads import Headers
from proxy.core.reply import WholeReply
from proxy.core.secret import Secret
from proxy.doctor.kept import look_into_store
from proxy.doctor.network import READ, Walk
from proxy.doctor.of_kept import living, why_no_login
from proxy.doctor.of_replies import (
    Answer,
    of_account_told,
    of_issue,
    of_read,
    of_refresh,
    read_answer,
)
from proxy.doctor.step import Step, Tell, bad, good, left_out
from proxy.errors import UpstreamError
from proxy.tokens.keyring import Keyring
from proxy.tokens.nomba import Grant, IssuerError, NombaAuth

_CALLS = ("issue", "read", "refresh")


@dataclass(slots=True)
class _Overheard:
    """Passes the calls of a session on, and keeps the last reply: it says more than an error."""

    walk: Walk
    last: WholeReply | None = None

    @property
    def answer(self) -> Answer | None:
        """What that says."""
        return None if self.last is None else read_answer(self.last)

    async def call(
        self,
        target: bytes,
        *,
        headers: Headers,
        body: bytes,
        within: float,
        sending: Callable[[], object] = bool,
    ) -> WholeReply:
        """As `core.reply.CallUpstream`."""
        self.last = None
        self.last = await self.walk.dialler.call(
            target, headers=headers, body=body, within=within, sending=sending
        )
        return self.last


async def ask_nomba(walk: Walk, *, may_issue: bool, secrets: list[Secret], tell: Tell) -> None:
    """Ask with the token of the store, or with one of our own; no proxy runs here.

    Args:
        walk: the way there, which was gone.
        may_issue: whether the operator lets us log in.
        secrets: takes those that nobody is to see.
        tell: told of each step.
    """
    async with look_into_store(walk.one, settings=walk.settings) as kept:
        now = alive_clock()()
        token = None if kept.held is None else living(kept.held, now=now)
        why = why_no_login(kept.held, now=now)
        if not walk.open:
            why = "Nomba cannot be asked: see above"
        elif not why and not may_issue:
            why = "--no-issue; nobody has a session that could be used instead"
        elif not why and (admin := who_is_present(walk.settings.state_dir)) is not None:
            why = (
                "a proxy runs with the same state directory, though not where these settings say: "
                "a login could end its session. Ask that one: "
                f"NOMBA_PROXY_ADMIN_LISTEN={admin} nomba-proxy doctor"
            )
        steps = [] if why else await _ask_anew(walk, secrets=secrets)
    if token is not None and walk.open:
        secrets += [token.access, token.refresh]
        steps = await _ask_with(walk, token.access, why=why)
    done = {one.name for one in steps}
    for step in (*steps, *(left_out(name, why) for name in _CALLS if name not in done)):
        tell(step)
    tell(kept.step)


async def _ask_with(walk: Walk, access: Secret, *, why: str) -> list[Step]:
    """Use the token that somebody has left in the store, and change nothing."""
    return [
        left_out("issue", why),
        await _read(walk, access, with_what="the token in the store", fresh=False),
        left_out("refresh", "it would end the token in the store; whoever uses that renews it"),
    ]


async def _ask_anew(walk: Walk, *, secrets: list[Secret]) -> list[Step]:
    """Log in, read, refresh, and give the token back."""
    overheard = _Overheard(walk)
    auth = make_auth(walk.one, call=overheard.call, settings=walk.settings)
    steps: list[Step] = []
    grant: Grant | None = None
    for secret in Keyring(walk.one.client_secret, walk.one.next_secret).given:
        try:
            grant = await auth.issue(secret)
        except IssuerError as error:
            steps.append(of_issue(overheard.answer, error=str(error), place=walk.place))
        else:
            break
    if grant is None:
        return [*steps, *(left_out(name, "there is no token") for name in _CALLS[1:])]
    newest = grant
    try:
        secrets += [grant.access_token, grant.refresh_token]
        steps.append(
            good(
                "issue",
                f"logged in, as nobody here has a session; the token lives {grant.life:.0f} s",
            )
        )
        if (told := of_account_told(grant.account_id, walk.place)) is not None:
            steps.append(told)
        steps.append(await _read(walk, grant.access_token, with_what="that token", fresh=True))
        newest, step = await _refresh(auth, grant, overheard=overheard)
        secrets += [newest.access_token, newest.refresh_token]
        steps.append(step)
    finally:
        steps.append(await _revoke(auth, newest))
    return steps


async def _read(walk: Walk, access: Secret, *, with_what: str, fresh: bool) -> Step:
    one = walk.one
    bearer = b"Bearer " + access.reveal(to=one.origin.text).encode("ascii")
    try:
        reply = await walk.dialler.call(
            READ,
            method=b"GET",
            headers=(
                (b"Authorization", bearer),
                (b"accountId", one.account_id.encode("latin-1")),
            ),
            body=b"",
            within=walk.settings.model.token.call_timeout,
        )
    except UpstreamError as error:
        return bad("read", error.description, error.hint or "Try again.")
    return of_read(read_answer(reply), walk.place, with_what=with_what, fresh=fresh)


async def _refresh(auth: NombaAuth, grant: Grant, *, overheard: _Overheard) -> tuple[Grant, Step]:
    """The newest token there is, and what is to be said of the refresh."""
    if not grant.refresh_token:
        return grant, left_out(
            "refresh", "the login brought no refresh token: each renewal logs in"
        )
    try:
        newer = await auth.refresh(
            access_token=grant.access_token, refresh_token=grant.refresh_token
        )
    except IssuerError as error:
        return grant, of_refresh(overheard.answer, error=str(error))
    return newer, good("refresh", f"a newer token, which lives {newer.life:.0f} s")


async def _revoke(auth: NombaAuth, grant: Grant) -> Step:
    """Give the token back, so that nothing is left of all this."""
    try:
        await auth.revoke(grant.access_token)
    except IssuerError as error:
        return bad(
            "revoke",
            f"the token of this examination could not be revoked: {error}",
            f"It does no harm: it ends with the next login, or in {grant.life:.0f} s.",
        )
    return good("revoke", "the token of this examination is revoked: nothing is left of it")
