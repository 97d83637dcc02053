"""What a page, a terminal or a file is given: JSON made of what may be shown."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from proxy.inspector.compare import differences, mark
from proxy.inspector.exit import Body, Message, Shown
from proxy.inspector.hints import hints


def detail(shown: Shown, *, environment: str, replay: Mapping[str, Any]) -> dict[str, Any]:
    """All of an exchange.

    Args:
        shown: the exchange.
        environment: of its upstream.
        replay: whether it can be replayed (`Replayer.outlook`).
    """
    attempts = []
    request = shown.request
    received = request.headers if request is not None else []
    caller_marks, _ = mark(received, shown.attempts[-1].headers if shown.attempts else received)
    for number, one in enumerate(shown.attempts, 1):
        _, sent = mark(received, one.headers)
        plain = asdict(one) | {"number": number, "headers": sent}
        plain["reply"] = _message(one.reply)
        attempts.append(plain)
    reply = shown.reply
    answered = shown.attempts[-1].reply if shown.attempts else None
    given = None
    if reply is not None:
        _, marks = mark(answered.headers if answered is not None else reply.headers, reply.headers)
        given = _message(reply) | {"headers": marks}
    return {
        "row": shown.row,
        "request": None if request is None else _message(request) | {"headers": caller_marks},
        "attempts": attempts,
        "reply": given,
        "timeline": [asdict(one) for one in shown.timeline],
        "seconds": shown.row["seconds"],
        "hints": hints(shown, environment=environment),
        "replay": dict(replay),
    }


def comparison(before: Shown, after: Shown) -> dict[str, Any]:
    """Two exchanges line by line."""
    pairs = (("request", before.request, after.request), ("reply", before.reply, after.reply))
    return {
        "parts": [{"name": name, "lines": differences(a, b)} for name, a, b in pairs],
    }


def _message(message: Message | None) -> Any:
    if message is None:
        return None
    return {
        "start": message.start,
        "headers": [(name, value, "") for name, value in message.headers],
        "body": _body(message.body),
    }


def _body(body: Body) -> dict[str, Any]:
    return asdict(body)
