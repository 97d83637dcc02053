"""What follows from what a proxy that runs says of itself: plain functions."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from proxy.doctor.of_kept import of_store_problem
from proxy.doctor.of_replies import Answer, Place, of_issue, of_read, rival
from proxy.doctor.step import Step, bad, good, left_out

# As `tokens/nomba.py` words it: `issue: HTTP 401, envelope code 401`.
_LAST_ERROR = re.compile(r"\w+: HTTP (\d{3})(?:, envelope code (\w+)|, body is (not JSON|empty))?")
_LOG = "Look into its log."
_RIVALS = re.compile(r'nomba_proxy_session_rivals_total\{upstream="([^"]*)"\} ([0-9.e+]+)')


def status_of(every: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """What a proxy says of an upstream's session; None if it has no such upstream.

    Args:
        every: its answer to `GET /token`.
        name: of the upstream.
    """
    found = (one for one in every.values() if name in one["upstreams"])
    return next(found, None)


def rivals_of(metrics: str) -> dict[str, int]:
    """How often a proxy met a rival session, by upstream.

    Args:
        metrics: as it shows them.
    """
    found = {}
    for name, count in _RIVALS.findall(metrics):
        with suppress(ValueError, OverflowError):  # another version may write other numbers
            found[name] = int(float(count))
    return found


def of_proxy(status: Mapping[str, Any] | None, *, names: list[str], where: str) -> Step:
    """Whether a proxy that runs has this upstream, and a token.

    Args:
        status: what it says of the session; None if it has no such upstream.
        names: of its upstreams.
        where: its admin listener.
    """
    if status is None:
        return bad(
            "proxy",
            f"one runs (admin {where}), and this upstream is none of its: {', '.join(names)}",
            "It was started with other settings: start it again with these, or give the doctor those "
            "(the same environment, --config and --admin-listen).",
        )
    says = f"one runs (admin {where}); its token is {status['state']}"
    if status["state"] == "stopped":
        return bad(
            "proxy",
            f"{says}: an operator revoked it (nomba-proxy token revoke --stop)",
            "When it is safe again: nomba-proxy token renew",
        )
    if status["token"]:
        says += f", generation {status['generation']}, for {status['expires_in']:.0f} s more"
    elif not status["failures"]:
        return bad(
            "proxy",
            f"{says}: it has none yet" + (", a login is under way" if status["renewing"] else ""),
            "Ask again in some seconds; its log says what it waits for.",
        )
    advice = ""
    if status["secret_pending"]:
        advice = "Another client secret is set there, and Nomba does not take it yet: check it."
    return good("proxy", says, advice)


def of_failures(status: Mapping[str, Any], place: Place) -> Iterator[Step]:
    """Why a proxy that runs gets no newer token, as far as it gets none.

    Args:
        status: what it says of the session.
        place: where it logs in.
    """
    if not status["failures"]:
        return
    error = str(status["last_error"])
    found = _LAST_ERROR.search(error)
    answer = None
    if found is not None:
        status_code, code, body = found.groups()
        answer = Answer(int(status_code), code or "", page=body == "not JSON")
    judged = of_issue(answer, error=error, place=place)
    yield bad(
        "issue",
        f"the running proxy has failed {status['failures']} times in a row: {judged.seen}",
        f"{judged.next} It tries again in {status['retry_in']:.0f} s; at once: nomba-proxy token renew",
    )


def of_status_store(problem: str, *, where: str) -> Step:
    """What a proxy that runs says of its store.

    Args:
        problem: why it cannot use it, or "".
        where: the store, by the settings.
    """
    if problem:
        return of_store_problem(where, problem=problem)
    return good("store", f"{where}: the running proxy uses it")


def of_rivals(count: int) -> Iterator[Step]:
    """Whether a proxy that runs has met a rival session."""
    if count:
        times = "once" if count == 1 else f"{count} times"
        yield rival(
            f"a rival session, {times} since the proxy was started: tokens that worked were refused "
            "before their time, three within minutes"
        )


def of_forwarded(
    answer: Answer, *, error: str, description: str, hint: str, place: Place, renewed: bool
) -> Step:
    """The answer to a harmless read through a proxy that runs.

    Args:
        answer: it.
        error: `Nomba-Proxy-Error`, or "".
        description: of that.
        hint: of that.
        place: where the proxy asks.
        renewed: whether the proxy had to renew the token for it.
    """
    if error in {"caller_unknown", "caller_forbidden"}:
        return left_out(
            "read",
            f"the running proxy wants a key from its callers ({error}), and the doctor has none",
            "By hand: curl -H 'Authorization: Bearer KEY' …/v1/accounts/balance "
            "(nomba-proxy caller add NAME makes a key)",
        )
    if error:
        return bad("read", f"the running proxy answers {error}: {description}", hint or _LOG)
    if renewed and not answer.refusal:
        return rival(
            "the running proxy's token was refused before its time, and it had to get another one"
        )
    return of_read(answer, place, with_what="the running proxy's token", fresh=False)
