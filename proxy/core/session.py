"""What is known of a session, and what follows from it: values and a table, no time of its own.

`Held` is everything that processes which share a session have to agree on; a store keeps it.
Each function takes one and `now`, and brings the next. What is awaited (locks, calls to the
issuer, waiting requests) lies around this, in `tokens/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from proxy.core.lifetime import MAX_LIFE, Backoff, Lifetime
from proxy.core.secret import Secret

_MINUTE = 60.0
# Digests of tokens held before: none of them is taken for a new one.
_REMEMBERED = 64
_RIVAL_DEATHS, _RIVAL_WINDOW = 3, 600.0
_LONGEST_PAUSE = 750.0  # seconds: the longest back-off with its jitter

_UNREACHABLE = Backoff(first=0.5, cap=30.0)
# A refused secret does not get better by asking: slow from the start.
_CREDENTIALS = Backoff(first=30.0, cap=600.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may do, in seconds where nothing else is said.

    Attributes:
        early: renew in the background this long before the end (at most a quarter of the life).
        urgent: requests wait for the renewal this long before the end (at most an eighth).
        wait_limit: the longest a request waits for a token.
        gap: after two generations in a row that were refused and never accepted, none is renewed
            for that reason for this long.
        memory: how long a (caller, path) is remembered that two successive generations were
            refused for; if nobody had the second accepted either, as long as `gap`.
        alone: whether to renew without the store, once the token is about to die.
        revoke_old: whether the old token is revoked after a switch to another client secret.
        budget: renewals that refusals may cause in a minute; what one caller was never served a
            quarter of them, so that it leaves some to the others.
    """

    early: float = 300.0
    urgent: float = 30.0
    wait_limit: float = 20.0
    gap: float = 10.0
    memory: float = 60.0
    budget: int = 30
    alone: bool = False
    revoke_old: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the session.

    Attributes:
        access: the bearer token.
        refresh: the refresh token, possibly empty.
        generation: counts renewals, from 1.
        lifetime: when to renew and when it is dead.
    """

    access: Secret
    refresh: Secret
    generation: int
    lifetime: Lifetime

    def same(self, other: "Token | None") -> bool:
        """Whether it is the very same token: two may have one generation, if a store lost one."""
        if other is None or self.generation != other.generation:
            return False
        return self.access == other.access


@dataclass(frozen=True, slots=True)
class Trouble:
    """Renewals that failed in a row.

    Attributes:
        failures: how many.
        retry_at: when the next one may be tried.
        reason: of the last: `credentials`, `unreachable`, `reply`, `internal`; or what only this
            process has met: `store`, `sealed` (with other secrets than ours) or `secret` (ours
            is not the one in force).
        text: the same for people; no secrets.
    """

    failures: int = 0
    retry_at: float = 0.0
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a session. Times are of the clock that runs during sleep.

    Attributes:
        token: the present one; None before the first, and once it was refused or revoked.
        generation: of the last token there was.
        accepted: whether the upstream ever took a token of this generation.
        unaccepted: generations in a row that were refused and never accepted.
        gap_until: no refusal of an unaccepted generation renews before this.
        forced: when refusals caused renewals, and on whose share, as far as the budget counts them.
        deaths: generations that worked and died early without a cause of ours, and when.
        excused: a generation whose death had one.
        trouble: what keeps renewals from succeeding.
        stopped: by an operator; no token until an operator says so.
        calling: a call to the issuer is under way. Found so by another process, it means that
            whoever made the call is gone, and the session perhaps with it.
        seen: digests of the last tokens.
        skew: seconds that the issuer's clock was ahead of ours; None if it told no time.
        issued: when the token was asked for.
        secret: digest of the client secret it was issued for: the one in force; "" if unknown.
        switched: when that changed.
        rejected: digests of client secrets that were refused while another was in force, and when.
    """

    token: Token | None = None
    generation: int = 0
    accepted: bool = False
    unaccepted: int = 0
    gap_until: float = 0.0
    forced: tuple[tuple[float, str], ...] = ()
    deaths: tuple[tuple[int, float], ...] = ()
    excused: int = 0
    trouble: Trouble = field(default_factory=Trouble)
    stopped: bool = False
    calling: bool = False
    seen: tuple[str, ...] = ()
    skew: float | None = None
    issued: float = 0.0
    secret: str = ""
    switched: float = 0.0
    rejected: tuple[tuple[str, float], ...] = ()

    def without(self, refused: Token | None) -> "Held":
        """The same without its token, if that is this one or an older one."""
        token = self.token
        if refused is None or token is None:
            return self
        if token.generation < refused.generation or token.same(refused):
            return replace(self, token=None)
        return self

    def ended(self, token: Token | None) -> "Held":
        """As `without`, of one that is revoked: what dies of that had a cause."""
        held = self.without(token)
        return held if held.token is self.token else replace(held, excused=self.generation)

    def moved(self, by: float) -> "Held":
        """The same by a clock that is `by` seconds ahead."""
        token, trouble = self.token, self.trouble
        return replace(
            self,
            token=token and replace(token, lifetime=token.lifetime.moved(by)),
            gap_until=self.gap_until + by,
            forced=tuple((at + by, who) for at, who in self.forced),
            deaths=tuple((number, at + by) for number, at in self.deaths),
            trouble=replace(trouble, retry_at=trouble.retry_at + by),
            issued=self.issued + by,
            switched=self.switched + by,
            rejected=tuple((digest, at + by) for digest, at in self.rejected),
        )

    def bounded(self, *, now: float) -> "Held":
        """The same without times that no clock of ours can have meant: another one was set back."""
        token, trouble = self.token, self.trouble
        if token is not None and token.lifetime.dies_at > now + MAX_LIFE:
            token = None
        return replace(
            self,
            token=token,
            gap_until=min(self.gap_until, now + _LONGEST_PAUSE),
            forced=tuple((min(at, now), who) for at, who in self.forced),
            deaths=tuple((number, min(at, now)) for number, at in self.deaths),
            trouble=replace(trouble, retry_at=min(trouble.retry_at, now + _LONGEST_PAUSE)),
            issued=min(self.issued, now),
            switched=min(self.switched, now),
            rejected=tuple((digest, min(at, now)) for digest, at in self.rejected),
        )

    def renumbered(self, generation: int) -> "Held":
        """The same as another generation."""
        token = self.token and replace(self.token, generation=generation)
        return replace(self, token=token, generation=generation)


# -- the table ---------------------------------------------------------------------------


class Phase(StrEnum):
    """What there is to lend."""

    STOPPED = "stopped"
    EMPTY = "empty"
    FRESH = "fresh"
    SOON = "soon"  # to be renewed in the background
    NOW = "now"  # requests wait for the renewal


class Asked(StrEnum):
    """What happens to a session."""

    WANTED = "wanted"  # a request needs the token
    LOOK = "look"  # the background looks after it
    REFUSED = "refused"  # the upstream refused the present token
    OPERATOR = "operator"  # somebody said: renew


class Decision(StrEnum):
    """What to do about it."""

    LEND = "lend"
    TRY = "try"  # wait for one renewal; if it brings nothing, lend
    WAIT = "wait"  # wait for a renewal
    RENEW = "renew"
    FORCE = "force"  # drop the token and renew, if `why_not` has no objection
    REST = "rest"
    FAIL = "fail"  # say that there is no token


_D = Decision
# What to do, and what to do while failures hold renewals off.
TABLE: Mapping[Asked, Mapping[Phase, tuple[Decision, Decision]]] = {
    Asked.WANTED: {
        Phase.FRESH: (_D.LEND, _D.LEND),
        Phase.SOON: (_D.LEND, _D.LEND),
        Phase.NOW: (_D.TRY, _D.LEND),
        Phase.EMPTY: (_D.WAIT, _D.FAIL),
        Phase.STOPPED: (_D.FAIL, _D.FAIL),
    },
    Asked.LOOK: {
        Phase.FRESH: (_D.REST, _D.REST),
        Phase.SOON: (_D.RENEW, _D.REST),
        Phase.NOW: (_D.RENEW, _D.REST),
        Phase.EMPTY: (_D.RENEW, _D.REST),
        Phase.STOPPED: (_D.REST, _D.REST),
    },
    Asked.REFUSED: {
        Phase.FRESH: (_D.FORCE, _D.FORCE),
        Phase.SOON: (_D.FORCE, _D.FORCE),
        Phase.NOW: (_D.FORCE, _D.FORCE),
        Phase.EMPTY: (_D.RENEW, _D.FAIL),
        Phase.STOPPED: (_D.FAIL, _D.FAIL),
    },
    Asked.OPERATOR: dict.fromkeys(Phase, (_D.RENEW, _D.RENEW)),
}


def phase(held: Held, *, now: float, wall: float) -> Phase:
    """What there is to lend; a token whose renewal was begun may be dead, so it is due."""
    if held.stopped:
        return Phase.STOPPED
    token = held.token
    if token is None or token.lifetime.dead(now=now):
        return Phase.EMPTY
    if token.lifetime.urgent(now=now):
        return Phase.NOW
    due = held.calling or token.lifetime.due_in(now=now, wall=wall) <= 0
    return Phase.SOON if due else Phase.FRESH


def held_off(held: Held, *, now: float) -> bool:
    """Whether failures keep renewals from being tried."""
    return held.trouble.failures > 0 and now < held.trouble.retry_at


def decide(held: Held, asked: Asked, *, now: float, wall: float) -> Decision:
    """What to do."""
    usual, while_held_off = TABLE[asked][phase(held, now=now, wall=wall)]
    return while_held_off if held_off(held, now=now) else usual


def by_issue(held: Held, decision: Decision, *, now: float) -> bool:
    """Whether a renewal has to be an issue: a refresh needs a living token, and its own."""
    token = held.token
    if decision is Decision.FORCE or held.calling or token is None:
        return True
    return not token.refresh or token.lifetime.dead(now=now)


# -- what refusals may cause -----------------------------------------------------------------


def why_not(held: Held, share: str, *, now: float, limits: Limits) -> str:
    """Why the refusal of the present generation is no reason to renew; "" if it is one.

    Args:
        held: with that generation.
        share: whose part of the budget is used; "" for nobody's, where the very same was served
            with this generation before, so that the token must have died.
        now: the time.
        limits: of it all.
    """
    if not held.accepted and not held.calling and now < held.gap_until:
        return "The token was renewed a moment ago and refused again."
    recent = [who for at, who in held.forced if now - at < _MINUTE]
    if len(recent) >= limits.budget:
        return f"Refusals have caused {limits.budget} renewals within a minute."
    part = max(1, limits.budget // 4)
    if share and recent.count(share) >= part:
        return f"Refusals of this caller have caused {part} renewals within a minute."
    return ""


def force(held: Held, share: str, *, now: float, limits: Limits) -> Held:
    """The present generation was refused, and is about to be renewed for it (`why_not`)."""
    unaccepted, gap_until, excused = held.unaccepted, held.gap_until, held.excused
    if held.calling:  # whoever was killed while it renewed is why, and nobody else
        excused = held.generation
    elif not held.accepted:
        unaccepted += 1
        if unaccepted > 1:
            gap_until = now + limits.gap
    return replace(
        held,
        token=None,
        unaccepted=unaccepted,
        gap_until=gap_until,
        excused=excused,
        forced=(*(one for one in held.forced if now - one[0] < _MINUTE), (now, share)),
    )


def died(held: Held, generation: int, *, now: float) -> tuple[Held, int]:
    """A generation was refused where the next one was accepted.

    Returns:
        What is known now; and how many such deaths say that somebody else logs in with our
        credentials, or 0.
    """
    if generation == held.excused or any(generation == one for one, _ in held.deaths):
        return held, 0
    recent = tuple(one for one in held.deaths if now - one[1] < _RIVAL_WINDOW)
    deaths = (*recent, (generation, now))
    if len(deaths) < _RIVAL_DEATHS:
        return replace(held, deaths=deaths), 0
    return replace(held, deaths=()), len(deaths)


def accepted(held: Held, generation: int) -> Held:
    """The upstream took a token of this generation."""
    if generation != held.generation or held.accepted:
        return held
    return replace(held, accepted=True, unaccepted=0, gap_until=0.0)


# -- what the issuer said ----------------------------------------------------------------------


def granted(
    held: Held,
    *,
    access: Secret,
    refresh: Secret,
    lifetime: Lifetime,
    skew: float | None = None,
    secret: str,
    now: float,
) -> Held:
    """The issuer brought a new token.

    Args:
        held: what was known.
        access: the bearer token.
        refresh: the refresh token, possibly empty.
        lifetime: of the token.
        skew: seconds that the issuer's clock is ahead of ours.
        secret: digest of the client secret it was issued for, or that of the token it is from.
        now: the time.
    """
    generation = held.generation + 1
    # A token that is replaced while it lives dies of that: it was not forced, so it is still here.
    replaced = held.generation if held.token is not None else held.excused
    return replace(
        held,
        excused=replaced,
        token=Token(access, refresh, generation, lifetime),
        generation=generation,
        accepted=False,
        trouble=Trouble(),
        calling=False,
        seen=(*held.seen, access.digest())[-_REMEMBERED:],
        skew=skew,
        issued=now,
        secret=secret,
        switched=held.switched if secret == held.secret else now,
        rejected=tuple(one for one in held.rejected if one[0] != secret),
    )


def failed(held: Held, *, reason: str, text: str, now: float, jitter: float) -> Held:
    """The issuer brought none."""
    failures = held.trouble.failures + 1
    backoff = _CREDENTIALS if reason == "credentials" else _UNREACHABLE
    retry_at = now + backoff.delay(failures, jitter=jitter)
    return replace(held, trouble=Trouble(failures, retry_at, reason, text), calling=False)


_SWITCH = 900.0  # seconds that a changed secret may take to get to everybody
_TRY_AGAIN = 600.0  # seconds until a client secret is tried again that was refused


def rejected(held: Held, secret: str, *, now: float) -> Held:
    """A client secret was refused that another one, which is in force, was to be replaced by."""
    rest = tuple(one for one in held.rejected if one[0] != secret)
    return replace(held, rejected=(*rest, (secret, now))[-4:], calling=False)


def switch_is_over(held: Held, *, now: float) -> bool:
    """Whether everybody can be expected to have the client secret that is in force."""
    return now - held.switched >= _SWITCH


def try_again_at(held: Held, secret: str) -> float:
    """When a client secret may be tried; 0 if it was not refused."""
    return max((at + _TRY_AGAIN for digest, at in held.rejected if digest == secret), default=0.0)


def newer(mine: Held, theirs: Held) -> Held:
    """Which of two is to be believed: what a process knew, and what the store holds.

    The store, unless it has lost what was in it: a generation is never taken back. Nor is a
    failure that could not be stored.
    """
    if theirs.generation < mine.generation:
        return mine
    if theirs.generation > mine.generation:
        return theirs
    trouble = max(mine.trouble, theirs.trouble, key=lambda one: one.retry_at)
    if theirs.token is not None and mine.token is not None and not theirs.token.same(mine.token):
        return theirs  # two were issued at once: what others have is the one
    known = accepted(theirs, mine.generation) if mine.accepted else theirs
    return known if trouble == known.trouble else replace(known, trouble=trouble)
