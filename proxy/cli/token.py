"""`nomba-proxy token show|renew|revoke`: asks the running proxy over its admin listener."""

import json
import sys
from typing import Any, TextIO

from proxy.cli.asking import NobodyAnswers, ask_admin
from proxy.core.printable import printable
from proxy.doctor.status import not_said
from proxy.settings import Settings


def token(
    settings: Settings, *, action: str, upstream: str | None, stop: bool, as_json: bool
) -> int:
    """Carry out an action on a running proxy's session; the exit code."""
    query = {"upstream": upstream} if upstream else {}
    if stop:
        query["stop"] = "1"
    method, path = ("GET", "/token") if action == "show" else ("POST", f"/token/{action}")
    try:
        code, answer = ask_admin(settings, method=method, path=path, query=query)
    except NobodyAnswers as error:
        _say(f"nomba-proxy: {error}", to=sys.stderr)
        return 1
    problem = answer.pop("error", None)
    if odd := not_said(answer):
        return _cannot_be_shown(
            answer, odd=odd, problem=problem, done=code == 200 and action != "show", as_json=as_json
        )
    if problem is None and upstream is not None:
        every = [one for status in answer.values() for one in status["upstreams"]]
        if upstream not in every:
            problem = f"there is no upstream {upstream}; there are: {', '.join(every)}"
        answer = {k: status for k, status in answer.items() if upstream in status["upstreams"]}
    if as_json:
        _say(json.dumps(answer if problem is None else {"error": problem, **answer}, indent=2))
    else:
        for status in answer.values():
            _show(status)
    if problem is not None:
        _say(f"nomba-proxy: {problem}", to=sys.stderr)
        return 1
    return 0


def _cannot_be_shown(
    answer: dict[str, Any], *, odd: str, problem: object, done: bool, as_json: bool
) -> int:
    """Say that it cannot be read what a proxy answered; the exit code."""
    if as_json:
        _say(json.dumps(answer if problem is None else {"error": problem, **answer}, indent=2))
    elif problem is not None:
        _say(f"nomba-proxy: {problem}", to=sys.stderr)
    _say(
        f"nomba-proxy: {'it is done, but ' if done else ''}an older or another version answers there, "
        f"it seems: it lacks, or says in another way: {odd}\n"
        "Ask it with its own nomba-proxy, or start it again with this one; --json shows what it says.",
        to=sys.stderr,
    )
    return 0 if done else 1


def _show(status: dict[str, Any]) -> None:
    names = ", ".join(status["upstreams"])
    _say(f"{names}: {status['state']}, generation {status['generation']}")
    if status["token"]:
        _say(f"  token       *** (sha256 {status['token']})")
        _say(f"  expires in  {status['expires_in']} s")
        _say(f"  renews in   {status['renews_in']} s")
    if status["secret_pending"]:
        refused = f", refused; next try in {wait} s" if (wait := status["secret_retry_in"]) else ""
        _say(f"  another client secret is set here and not in force{refused}")
    if status["store"]:
        _say(f"  store       {status['store']}")
    if status["renewing"]:
        _say("  a renewal is under way")
    if status["failures"]:
        _say(f"  failures    {status['failures']} in a row, next try in {status['retry_in']} s")
        _say(f"  last error  {status['last_error']}")
        _say("  what to do  nomba-proxy doctor tries it step by step")


def _say(text: str, *, to: TextIO | None = None) -> None:
    """Print what a proxy says; whoever answers there, a terminal does not act on it."""
    print(printable(text, lines=True), file=to)
