"""What follows from what Nomba, or a proxy that runs, answered: plain functions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from proxy.core.heads import field_value
from proxy.core.judge import PEEK_LIMIT, Verdict, judge
from proxy.core.origin import PRODUCTION, SANDBOX, Environment
from proxy.core.printable import printable
from proxy.core.reply import WholeReply
from proxy.core.secret import mask
from proxy.doctor.step import Step, bad, good

_UNKNOWN_SOURCE = re.compile(r"unknown source|not allow-?listed|ip (?:address )?not", re.IGNORECASE)
_LONGEST = 120  # characters of what Nomba says
_SOMEBODY_ELSE = (
    "Nomba keeps one session a client, and each login ends the one before: find who else logs in "
    "with these credentials (another proxy, an app, a developer), and send it through this proxy, or "
    "give it a client of its own. Several proxies share a session with store = file:DIR or valkey://."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where was asked, and by what way.

    Attributes:
        origin: `scheme://host[:port]`.
        environment: of it.
        account: that was asked for.
        family: `IPv4` or `IPv6`; "" where a proxy dials.
    """

    origin: str
    environment: Environment
    account: str = ""
    family: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, as far as it matters here.

    Attributes:
        status: HTTP's.
        code: of the envelope, or "".
        text: what that says, or "".
        page: whether it is a page, and no JSON.
        refusal: whether it refuses the token.
    """

    status: int
    code: str = ""
    text: str = ""
    page: bool = False
    refusal: bool = False

    def __str__(self) -> str:
        """For people."""
        code = f", code {self.code}" if self.code else ""
        text = f" “{self.text}”" if self.text else ""
        return f"HTTP {self.status}{code}{text}{', a page instead of JSON' if self.page else ''}"


def read_answer(reply: WholeReply) -> Answer:
    """What a reply says."""
    media = field_value(reply.headers, b"content-type") or b""
    coding = field_value(reply.headers, b"content-encoding") or b""
    body = reply.body[:PEEK_LIMIT]
    whole = len(reply.body) <= PEEK_LIMIT
    verdict, _ = judge(reply.status, coding=coding, body=body, complete=whole)
    try:
        found = orjson.loads(reply.body)
    except ValueError:
        found = None
    envelope: Mapping[str, object] = found if isinstance(found, dict) else {}
    texts = (envelope.get(name) for name in ("description", "message", "detail"))
    code = envelope.get("code")
    return Answer(
        reply.status,
        str(code)[:8] if isinstance(code, str | int) and str(code).isalnum() else "",
        _plain(next((one for one in texts if isinstance(one, str) and one), "")),
        page=b"html" in media.lower() or reply.body.lstrip()[:1] == b"<",
        refusal=verdict is not Verdict.ANSWER,
    )


def _plain(text: str) -> str:
    return printable(text)[:_LONGEST]


# -- 403 and the like -----------------------------------------------------------------------


def why_forbidden(answer: Answer, place: Place) -> tuple[str, str] | None:
    """What a 403 of the edge or of the allowlist means, and what to do; None if it is another one."""
    allowlist = bool(_UNKNOWN_SOURCE.search(answer.text))
    if answer.status != 403 or not (answer.page or allowlist):
        return None
    over = f" (asked over {place.family})" if place.family else ""
    what = "the edge in front of Nomba refuses" if answer.page else "Nomba refuses"
    seen = f"{what} the address this machine calls from{over}: {answer}"
    return seen, _allow(place)


def _allow(place: Place) -> str:
    v6 = (
        "It was called over IPv6, which no allowlist takes: set upstream.ipv4_only = true "
        "(NOMBA_PROXY_UPSTREAM_IPV4_ONLY=true). Then "
    )
    return (v6 if place.family == "IPv6" else "") + (
        "have the static IPv4 address that this machine goes out by (that of its NAT, not its own) "
        "put on the allowlist in Nomba's dashboard; up to three are taken. Serverless and home "
        "connections change theirs."
    )


def _environments(place: Place) -> str:
    here = {"production": "production", "sandbox": "the sandbox"}.get(place.environment)
    if here is None:
        return f"keys that are not of {place.origin}"
    there, name = (SANDBOX, "sandbox") if here == "production" else (PRODUCTION, "production")
    return (
        f"keys of the other environment: this is {here} ({place.origin}), and keys of "
        f"{there} are not good here (set NOMBA_ENVIRONMENT={name} for those)"
    )


# -- without a token ------------------------------------------------------------------------


def of_open_door(answer: Answer, place: Place) -> Step:
    """The answer to a request without a token; it should be a refusal."""
    if forbidden := why_forbidden(answer, place):
        return bad("http", *forbidden)
    if answer.status >= 500:
        return bad(
            "http",
            f"{place.origin} is in trouble: {answer}",
            "It is Nomba's, or that of something in front of it: look at Nomba's status page, try again.",
        )
    if answer.status == 401:
        return good("http", "answers 401 to who has no token, as it should")
    if answer.page:
        return bad(
            "http",
            f"{place.origin} answers with {answer}",
            "Something else than Nomba's API answers there: check NOMBA_BASE_URL, and whether a "
            "portal or proxy stands between.",
        )
    return good("http", f"answers {answer} to who has no token")


# -- the three calls ------------------------------------------------------------------------


def of_issue(answer: Answer | None, *, error: str, place: Place) -> Step:
    """A login that brought no token.

    Args:
        answer: what came; None if nothing did.
        error: what is wrong with it, in the words of the session.
        place: where it was.
    """
    if answer is None:
        return bad(
            "issue",
            error,
            "Mend what the steps before this say; if they say nothing, try again, and look at Nomba's "
            "status.",
        )
    if forbidden := why_forbidden(answer, place):
        return bad("issue", *forbidden)
    if answer.status == 403:
        return bad("issue", f"refused: {answer}", _entitled(place))
    if answer.status == 401 or answer.code in {"01", "401"}:
        return bad(
            "issue",
            f"Nomba refuses these credentials: {answer}",
            f"It may be (1) {_environments(place)}; (2) an account_id ({mask(place.account)}) that is "
            "no parent account: a sub-account does not belong there; (3) a client id and a secret "
            "that do not belong together, or a secret that was replaced in the dashboard.",
        )
    if answer.status == 429:
        return bad(
            "issue", f"too many requests: {answer}", "Wait a minute; find who asks so often."
        )
    if answer.status >= 500:
        return bad("issue", f"Nomba is in trouble: {answer}", "Try again; look at its status page.")
    return bad(
        "issue",
        f"{answer}; {error}",
        "That is no token. Check that NOMBA_BASE_URL is Nomba's API, and compare with its documentation.",
    )


def of_refresh(answer: Answer | None, *, error: str) -> Step:
    """A refresh that brought no token."""
    return bad(
        "refresh",
        f"{answer}" if answer is not None else error,
        "The proxy logs in anew where a refresh fails, so it goes on; but each login ends the session "
        "for everybody. A token that died since the login means that somebody else logged in.",
    )


def _entitled(place: Place) -> str:
    return (
        "A 403 in JSON is never about the token. Either the address this machine calls from is not "
        f"on the allowlist{f' (it was asked over {place.family})' if place.family else ''}; or "
        f"account_id ({mask(place.account)}) is a sub-account, which does not belong into the header: "
        "set NOMBA_ACCOUNT_ID to the parent account; or the account is not entitled to this product."
    )


# -- a read ---------------------------------------------------------------------------------


def of_account_told(told: str, place: Place) -> Step | None:
    """What the login says of the account; None if it is the one that was asked for.

    Args:
        told: the `businessId` of the login's reply, or "".
        place: where it was.
    """
    if not told or told.lower() == place.account.lower():
        return None
    return bad(
        "account",
        f"the keys are of account {mask(told)} (businessId), and account_id is {mask(place.account)}",
        "The header accountId takes the parent account only. If this is a sub-account, it belongs into "
        "the path, the query or the body of a request: set NOMBA_ACCOUNT_ID to the parent account.",
    )


def of_read(answer: Answer, place: Place, *, with_what: str, fresh: bool) -> Step:
    """The answer to a harmless read with a token.

    Args:
        answer: it.
        place: where it was.
        with_what: whose token it was, in words.
        fresh: whether that was had a moment ago.
    """
    if forbidden := why_forbidden(answer, place):
        return bad("read", *forbidden)
    if answer.refusal and fresh:
        return bad(
            "read",
            f"the token that the login has just brought is refused: {answer}",
            "Either somebody else logged in in this moment. " + _SOMEBODY_ELSE + " Or account_id "
            f"({mask(place.account)}) is not the parent account of these keys.",
        )
    if answer.refusal:
        return bad(
            "read",
            f"{with_what} should be living, and is refused: {answer}",
            "A rival session: somebody else has logged in since. " + _SOMEBODY_ELSE,
        )
    if answer.status == 403:
        return bad("read", f"refused: {answer}", _entitled(place))
    if answer.status == 429:
        return good("read", f"{with_what} is accepted, but there are too many requests just now")
    if answer.status != 200 or answer.code not in {"00", "200"}:
        return bad(
            "read",
            f"{with_what} brought {answer}",
            "The token was not refused. Look at Nomba's status page, and try again.",
        )
    return good("read", f"GET /v1/accounts/balance with {with_what}: HTTP 200, code {answer.code}")


def rival(seen: str) -> Step:
    """Somebody else logs in with the same credentials."""
    return bad("rival", seen, _SOMEBODY_ELSE)
