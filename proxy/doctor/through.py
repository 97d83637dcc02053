"""Ask a proxy that runs here: of its session, and for a harmless read, as a caller would."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from proxy.core.reply import WholeReply
from proxy.doctor.kept import place_of
from proxy.doctor.local import Heard, ask_traffic, status_now
from proxy.doctor.network import READ
from proxy.doctor.of_local import Around
from proxy.doctor.of_proxy import of_failures, of_forwarded, of_rivals, of_status_store, status_of
from proxy.doctor.of_replies import Place, read_answer
from proxy.doctor.step import Step, Tell, left_out
from proxy.settings import Settings

_BY_ITSELF = 5.0  # seconds before a renewal in which it may come of itself


async def ask_proxy(
    name: str, *, path: str, host: str, settings: Settings, around: Around, place: Place, tell: Tell
) -> None:
    """Ask it for one upstream; it keeps its session whatever comes.

    Args:
        name: of the upstream.
        path: in front of what is asked for: its mount.
        host: that it goes by, or "".
        settings: say where the proxy listens.
        around: what it has said already.
        place: where it asks.
        tell: told of each step.
    """
    status = None if around.status is None else status_of(around.status, name)
    why = "a proxy runs here, and a login would end its session"
    if status is None:
        for step in ("issue", "read", "refresh", "store"):
            tell(left_out(step, f"{why}; of this upstream it says nothing"))
        return
    failures = list(of_failures(status, place))
    for one in failures or [left_out("issue", why)]:
        tell(one)
    tell(await _read(status, path=path, host=host, settings=settings, place=place))
    for one in of_rivals(around.rivals.get(name, 0)):
        tell(one)
    renews = f"the running proxy does it by itself, next in {status['renews_in']:.0f} s"
    tell(left_out("refresh", renews if status["token"] else "there is no token"))
    tell(of_status_store(str(status["store"]), where=place_of(settings)))


async def _read(
    status: Mapping[str, Any],
    *,
    path: str,
    host: str,
    settings: Settings,
    place: Place,
) -> Step:
    if not status["token"]:
        return left_out("read", "the running proxy has no token")
    heard = await ask_traffic(settings, path=path + READ.decode(), host=host)
    if heard is None:
        return left_out(
            "read", "the running proxy does not answer where the settings say it listens"
        )
    now = await status_now(settings)
    later = None if now is None else status_of(now, status["upstreams"][0])
    renewed = (
        later is not None
        and later["generation"] > status["generation"]
        and status["renews_in"] > _BY_ITSELF
    )
    description, hint = _refusal(heard)
    return of_forwarded(
        read_answer(_whole(heard)),
        error=heard.headers.get("nomba-proxy-error", ""),
        description=description,
        hint=hint,
        place=place,
        renewed=renewed,
    )


def _whole(heard: Heard) -> WholeReply:
    headers = tuple(
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in heard.headers.items()
    )
    return WholeReply(heard.status, headers, heard.body)


def _refusal(heard: Heard) -> tuple[str, str]:
    """What a refusal of the proxy's own says, and its hint."""
    with suppress(ValueError, AttributeError, RecursionError):
        found = json.loads(heard.body)
        return str(found.get("description", "")), str(found.get("proxy", {}).get("hint", ""))
    return "", ""
