"""The sessions with the upstreams, and what became of their renewals."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from proxy.core.exchange import Event

_REMEMBERED = 30
_RENEWED = "token_renewed"
_FAILED = {"token_renewal_failed": "issue", "token_refresh_failed": "refresh"}


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session, as far as it is shown.

    Attributes:
        environment: `production`, `sandbox`, `simulator` or `other`.
        status: what there is to show now; no secrets.
        renew: renews now; raises with a text for people.
    """

    environment: str
    status: Callable[[], Mapping[str, Any]]
    renew: Callable[[], Awaitable[object]]


@dataclass(slots=True)
class Sessions:
    """All of them.

    Attributes:
        views: by the upstream's name.
        wall: epoch seconds.
    """

    views: MutableMapping[str, SessionView]
    wall: Callable[[], float] = time.time
    _renewals: dict[str, deque[dict[str, Any]]] = field(default_factory=dict)
    _lives: dict[str, float] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        """Take an event (`core.exchange.Emit`)."""
        told = event.fields
        if event.name == _RENEWED:
            self._lives[event.upstream] = float(str(told["life_seconds"]))
            entry = {"grant": told["grant"], "reason": told["for"], "result": "success"}
            entry |= {"generation": told["generation"], "detail": ""}
        elif event.name in _FAILED:
            entry = {"grant": _FAILED[event.name], "reason": told.get("for", "due")}
            entry |= {"result": "failure", "generation": None, "detail": told["reason"]}
        else:
            return
        at = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds")
        entry["at"] = at.replace("+00:00", "Z")
        kept = self._renewals.setdefault(event.upstream, deque(maxlen=_REMEMBERED))
        kept.appendleft(entry)

    def show(self) -> list[dict[str, Any]]:
        """Every session."""
        return [self._one(name, view) for name, view in self.views.items()]

    def _one(self, name: str, view: SessionView) -> dict[str, Any]:
        status = dict(view.status())
        life = self._lives.get(name, 0.0)
        living = status["state"] == "living"
        return {
            "name": name,
            "environment": view.environment,
            **status,
            "life": life,
            "age": round(max(0.0, life - status["expires_in"]), 1) if living else 0.0,
            "renewals": list(self._renewals.get(name, ())),
        }
