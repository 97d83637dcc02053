"""Who is calling: decided from the head and the connection, before a body byte is read."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from proxy.callers.keys import is_key, read_basic, read_key
from proxy.callers.revoked import Revocations
from proxy.core.caller import ANONYMOUS, OWNER, Caller, Roster
from proxy.core.heads import CallerHead
from proxy.core.limits import Limiter, Tally
from proxy.core.peer import NOBODY, KnownPeers, Peer, of_no_caller, says_of_itself
from proxy.core.phantom import Phantom, Phantoms, Refresh
from proxy.core.secret import Secret
from proxy.errors import CallerUnknown, RateLimited

_T = TypeVar("_T")
Way = Literal["anonymous", "phantom", "key", "basic", "certificate", "uid"]

_WHO_LOGS_IN = (
    "The proxy answers this login itself. It takes a caller's name and key (nomba-proxy caller add)"
)
_OWNERS_TOO = ", and the upstream's own client id and secret."
_KNOWN = 4096  # keys and tokens that are known again
_LOG_IN = (
    "Log in again at /v1/auth/token/issue, or send X-Nomba-Proxy-Key (nomba-proxy caller add)."
)


@dataclass(frozen=True, slots=True)
class Door:
    """Who gets in to one upstream beside the configured callers.

    Attributes:
        anonymous: whether the settings let in callers nobody knows.
        explicit: whether they say so themselves, so that adding callers changes nothing.
        client_id, client_secrets: the upstream's own credentials, which log in the built-in
            caller `owner`; no secrets where they do not.
        realm: where those credentials are good; what was issued for another is not good here.
    """

    anonymous: bool
    explicit: bool = False
    client_id: str = ""
    client_secrets: tuple[Secret, ...] = ()
    realm: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, and how it said so.

    Attributes:
        caller: with what it may do.
        way: what it was recognised by.
        expires: epoch seconds until which it may call.
        token_id: names the phantom token, or "".
        turn: of the registry's knowledge.
    """

    caller: Caller
    way: Way
    expires: float = math.inf
    token_id: str = ""
    turn: int = 0

    @property
    def ambient(self) -> bool:
        """Whether a browser would let any page call like this."""
        return self.way in {"anonymous", "basic", "certificate"}


_ANONYMOUS = Caller(ANONYMOUS)
_OWNER = Caller(OWNER)


class Registry:
    """Knows the callers and recognises them.

    Args:
        roster: the configured callers.
        doors: by name of the upstream.
        phantoms: reads phantom tokens.
        revoked: those that ended early.
        wall: epoch seconds.
        monotonic: seconds, for limits.
        tally: where a caller is counted, by its name.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        doors: Mapping[str, Door],
        phantoms: Phantoms,
        revoked: Revocations,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        tally: Callable[[str], Tally] = lambda _: Tally(),
    ) -> None:
        self._tally = tally
        self._doors = doors
        self._phantoms = phantoms
        self._revoked = revoked
        self._wall = wall
        self._monotonic = monotonic
        # What owners log in with, and what their tokens were issued for: another secret, client or
        # realm ends them.
        self._owners = {
            name: tuple(self._named(one, door) for one in door.client_secrets)
            for name, door in doors.items()
        }
        self._limiters: dict[str, Limiter] = {}
        # What was found right once, by its digest: whose key it is, and what a token says.
        self._keys: dict[bytes, Identity] = {}
        self._turn = 0  # of what is known, who are the owners and the callers
        self._tokens: dict[bytes, Phantom] = {}
        self._take(roster)

    def _take(self, roster: Roster) -> None:
        self._roster = roster
        self._callers = {one.name: one for one in roster.callers}
        self._peers = KnownPeers(roster.callers)

    def _named(self, secret: Secret, door: Door) -> tuple[Secret, str]:
        name = partial(self._phantoms.fingerprint, door.realm, door.client_id)
        return secret, secret.fingerprint(name)

    def given(self, upstream: str, secrets: tuple[Secret, ...]) -> None:
        """Take over the upstream's own client secrets, the newest first.

        Where owners may log in they may with the one before those too: their apps change later.
        """
        before = self._owners[upstream]
        if not before:
            return
        fresh = tuple(self._named(one, self._doors[upstream]) for one in secrets)
        rest = [one for one in before if one not in fresh]
        self._owners[upstream] = (*fresh, *rest[:1])
        self._keys.clear()
        self._turn += 1

    def replace(self, roster: Roster) -> None:
        """Take over another roster; what is under way goes on."""
        self._take(roster.after(self._roster))
        self._keys.clear()
        self._turn += 1
        now = self._monotonic()
        for name, limiter in list(self._limiters.items()):
            caller = self._callers.get(name)
            if caller is None or not (caller.rate or caller.concurrent):
                del self._limiters[name]
            else:
                limiter.change(*_limits(caller), now=now)

    # -- from a head ---------------------------------------------------------------------

    def identify(self, head: CallerHead, *, upstream: str, peer: Peer = NOBODY) -> Identity:
        """Who sent a request to an upstream.

        A key, if there is one, has to be right. An `Authorization` that opens nothing is worth
        nothing: then it is whose certificate or uid the connection has, if that is a caller's,
        else an anonymous caller where that is allowed.

        Args:
            head: of the request.
            upstream: where it is to go.
            peer: who is at the other end of its connection.

        Raises:
            CallerUnknown: nobody we know, and anonymous callers are not allowed; or the
                connection is of a caller that may not call now, or of several.
            TokenUnavailable: it is not known yet which tokens were revoked.
        """
        keys, own = head.keys, head.authorizations
        if len(own) == 1 and is_key(own[0]):  # where many libraries put a key
            keys = [*keys, *own]
        if keys:
            return self._by_key(keys)
        problem = None
        if len(own) > 1:
            problem = CallerUnknown("The request carries several Authorization fields.")
        elif own:
            try:
                return self._by_authorization(own[0], upstream)
            except CallerUnknown as error:
                problem = error
        if peer is not NOBODY and (known := self._by_peer(peer)) is not None:
            return known
        if self.lets_in_anonymous(upstream):
            return Identity(_ANONYMOUS, "anonymous", turn=self._turn)
        nobody = CallerUnknown("The request says nothing of who is calling.", hint=_LOG_IN)
        refusal = problem or of_no_caller(peer) or nobody
        refusal.logged = says_of_itself(peer)
        raise refusal

    def knows_still(self, identity: Identity) -> bool:
        """Whether somebody who was identified would be identified alike now.

        Raises:
            TokenUnavailable: it is not known yet which tokens were revoked.
        """
        return (
            identity.turn == self._turn
            and (identity.expires == math.inf or self._wall() < identity.expires)
            and not (identity.token_id and identity.token_id in self._revoked)
        )

    @property
    def roster(self) -> Roster:
        """The roster in force."""
        return self._roster

    def lets_in_anonymous(self, upstream: str) -> bool:
        """Whether callers that nobody knows may use an upstream."""
        door = self._doors[upstream]
        return door.anonymous and (door.explicit or self._roster.keeps_anonymous)

    def _by_peer(self, peer: Peer) -> Identity | None:
        found = self._peers.find(peer)
        if found is None:
            return None
        caller, way = found
        self._check_living(caller)
        if self._wall() >= peer.expires:  # since the connection was made
            raise CallerUnknown(
                f"The certificate of caller {caller.name} has expired.",
                hint="Connect again with a newer one.",
            )
        return Identity(caller, way, min(caller.expires, peer.expires), turn=self._turn)

    def _by_key(self, keys: list[bytes]) -> Identity:
        if len(keys) > 1:
            raise CallerUnknown(
                "The request carries several keys.",
                hint="Send it once: X-Nomba-Proxy-Key, Proxy-Authorization or Authorization.",
            )
        digest = hashlib.sha256(keys[0]).digest()
        known = self._keys.get(digest)
        if known is None:
            caller = self._check(*read_key(keys[0]))
            known = Identity(caller, "key", caller.expires, turn=self._turn)
            _remember(self._keys, digest, known)
        else:
            self._check_living(known.caller)
        return known

    def _by_authorization(self, value: bytes, upstream: str) -> Identity:
        scheme, _, rest = value.strip().partition(b" ")
        scheme = scheme.lower()
        if scheme == b"basic":
            caller = self._check(*read_basic(rest.strip()))
            return Identity(caller, "basic", caller.expires, turn=self._turn)
        text = rest.strip() if scheme == b"bearer" else value.strip()
        digest = hashlib.sha256(text).digest()
        phantom = self._tokens.get(digest)
        if phantom is None and (phantom := self._phantoms.read(text)) is not None:
            _remember(self._tokens, digest, phantom)
        known = self._holder(phantom, upstream) if phantom is not None else None
        if known is None or phantom is None:
            raise CallerUnknown("The token is unknown, expired or revoked.", hint=_LOG_IN)
        until = min(known.expires, phantom.expires)
        return Identity(known, "phantom", until, phantom.token_id, self._turn)

    def _check(self, name: str, secret: str) -> Caller:
        """The caller that has this secret.

        Raises:
            CallerUnknown: there is none, or it may not call now.
        """
        caller = self._callers.get(name)
        if caller is None or caller.find(secret) is None:
            raise CallerUnknown(
                "The key is not one of a caller's.",
                hint="nomba-proxy caller list shows the callers; rotate makes a new key.",
            )
        self._check_living(caller)
        return caller

    def _check_living(self, caller: Caller) -> None:
        if not caller.enabled:
            raise CallerUnknown(
                f"Caller {caller.name} is disabled.",
                hint=f"nomba-proxy caller enable {caller.name}",
            )
        if caller.expires != math.inf and self._wall() >= caller.expires:
            raise CallerUnknown(
                f"Caller {caller.name} has expired.",
                hint="Whoever runs the proxy can set another `expires`.",
            )

    def _holder(self, phantom: Phantom, upstream: str) -> Caller | None:
        """Whose phantom token it is, if it opens this upstream now."""
        if phantom.upstream != upstream or self._wall() >= phantom.expires:
            return None
        if phantom.token_id in self._revoked:
            return None
        return self._with_secret(phantom.caller, phantom.secret, upstream)

    def _with_secret(self, name: str, secret: str, upstream: str) -> Caller | None:
        if name == OWNER:
            owners = self._owners.get(upstream, ())
            return _OWNER if any(secret == one for _, one in owners) else None
        caller = self._callers.get(name)
        if caller is None or all(one.id != secret for one in caller.secrets):
            return None
        try:
            self._check_living(caller)
        except CallerUnknown:
            return None
        return caller

    # -- from a login --------------------------------------------------------------------

    def log_in(self, client_id: str, secret: str, *, upstream: str) -> tuple[Caller, str]:
        """Whom a pair of credentials belongs to, and the id of its secret.

        Raises:
            CallerUnknown: to nobody.
        """
        door = self._doors[upstream]
        owners = self._owners[upstream]
        if owners and client_id == door.client_id:
            for own, name in owners:
                if own.holds(secret):
                    return _OWNER, name
        elif (caller := self._callers.get(client_id)) and (digest := caller.find(secret)):
            self._check_living(caller)
            return caller, digest.id
        hint = _WHO_LOGS_IN + (_OWNERS_TOO if owners else ".")
        raise CallerUnknown("The client id or secret is wrong.", hint=hint)

    def of_refresh(self, refresh: Refresh) -> tuple[Caller, str] | None:
        """Whose living refresh token it is, and the id of the secret it was issued for.

        Raises:
            TokenUnavailable: it is not known yet which tokens were revoked.
        """
        if self._wall() >= refresh.expires or refresh.token_id in self._revoked:
            return None
        upstream = refresh.upstream
        for _, own in self._owners.get(upstream, ()):
            if self._phantoms.is_for(refresh, caller=OWNER, secret=own):
                return _OWNER, own
        for caller in self._roster.callers:
            for one in caller.secrets:
                if self._phantoms.is_for(refresh, caller=caller.name, secret=one.id):
                    known = self._with_secret(caller.name, one.id, upstream)
                    return (known, one.id) if known is not None else None
        return None

    def secret_of(self, name: str, *, upstream: str) -> str | None:
        """The id of a secret that a caller could log in with now; None if it has none."""
        if name == OWNER:
            return next((own for _, own in self._owners.get(upstream, ())), None)
        caller = self._callers.get(name)
        return caller.secrets[0].id if caller is not None and caller.secrets else None

    # -- limits --------------------------------------------------------------------------

    def enter(self, caller: Caller) -> Limiter | None:
        """Let a request of a caller in; the limiter, if there is one, is told when it ends.

        Raises:
            RateLimited: it asks for more than it may.
        """
        if not caller.rate and not caller.concurrent:
            return None
        limiter = self._limiters.get(caller.name)
        now = self._monotonic()
        if limiter is None:
            limiter = Limiter(*_limits(caller), now=now, tally=self._tally(caller.name))
            self._limiters[caller.name] = limiter
        if wait := limiter.enter(now):
            raise RateLimited(
                f"Caller {caller.name} asks for more than it may.",
                hint=f"Its limits: {_told(caller)}. Send fewer, or have them raised.",
                retry_after=wait,
            )
        return limiter


def _limits(caller: Caller) -> tuple[float, int, int]:
    return caller.rate, caller.burst, caller.concurrent


def _told(caller: Caller) -> str:
    limits = {
        f"{caller.rate:g} a second (rate)": caller.rate,
        f"{caller.burst} at once after a pause (burst)": caller.rate,
        f"{caller.concurrent} at a time (concurrent)": caller.concurrent,
    }
    return ", ".join(text for text, there_is in limits.items() if there_is)


def _remember(known: dict[bytes, _T], digest: bytes, what: _T) -> None:
    if len(known) >= _KNOWN:
        del known[next(iter(known))]
    known[digest] = what
