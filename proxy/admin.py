"""The admin listener: health, readiness, metrics, reload, and the session's switches.

Where only this machine reaches it, it answers whoever does. A page in a browser on this machine
could, so whatever looks like one is refused: a foreign `Host` (DNS rebinding), a foreign
`Origin` or `cross-site`, and any page at all on a request that changes something. Elsewhere
probes are answered, and the rest to who has the token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import orjson
from aiohttp import web

from proxy.core.browser import Pages
from proxy.core.secret import Secret
from proxy.errors import ProxyError

_NO_PAGES = Pages()
_PAUSE = (
    4.0  # of the time that showing metrics took: callers wait for it, however often it is asked
)
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class SessionControls:
    """What the admin listener can do with one session.

    Attributes:
        ready: whether there has been a token since start.
        status: what there is to show; no secrets.
        renew: renew now; raises with a text for people.
        revoke: revoke now, `stop` to stay without a token; returns a problem or "".
        upstreams: names of all that share it.
    """

    ready: Callable[[], bool]
    status: Callable[[], Mapping[str, object]]
    renew: Callable[[], Awaitable[object]]
    revoke: Callable[[bool], Awaitable[str]]
    upstreams: tuple[str, ...] = ()


class Kind(Enum):
    """What a route is for, which says who may ask."""

    PROBE = "probe"
    METRICS = "metrics"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Guard:
    """Who may ask what.

    Attributes:
        local: whether only this machine reaches the listener.
        token: asked for on what is for operators, if there is one.
        open_metrics: whether everybody may read metrics.
        is_loopback: whether a host name is this machine's own.
    """

    local: bool
    token: Secret | None
    open_metrics: bool
    is_loopback: Callable[[str], bool]

    def refuse(self, request: web.BaseRequest, kind: Kind) -> web.Response | None:
        """The refusal of a request; None if it may be answered."""
        if not self._is_no_page(request):
            return _json({"error": "the admin listener answers this machine only"}, status=403)
        if kind is Kind.PROBE or (kind is Kind.METRICS and (self.local or self.open_metrics)):
            return None
        if self.token is None:
            if self.local:
                return None
            text = (
                "other machines can reach this listener, so it needs a token, and none is set: "
                "admin.token_file (NOMBA_PROXY_ADMIN_TOKEN_FILE), in the proxy's settings"
            )
            return _json({"error": text}, status=403)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.token.holds(given.strip()):
            return None
        refused = _json(
            {"error": "this needs the right token: Authorization: Bearer …"}, status=401
        )
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused

    def _is_no_page(self, request: web.BaseRequest) -> bool:
        """Whether a request comes from a program, and where that counts from this machine."""
        try:
            host = request.url.host or ""
        except ValueError:
            return False
        if self.local and not self.is_loopback(host):
            return False
        try:
            _NO_PAGES.check(request.raw_headers, any_host=not self.local)
        except ProxyError:
            return False
        fetched = request.headers.get("Sec-Fetch-Site", "none") != "none"
        return not ("Origin" in request.headers or fetched) or request.method in {"GET", "HEAD"}


class ControlFailed(Exception):
    """An operator's command failed; the text says why.

    Attributes:
        status: of the reply.
    """

    def __init__(self, text: str, *, status: int = 502) -> None:
        super().__init__(text)
        self.status = status


class UnknownUpstream(Exception):
    """An operator named no upstream that there is."""


def build_admin(
    sessions: Mapping[str, SessionControls],
    *,
    is_draining: Callable[[], bool],
    metrics: Callable[[], bytes],
    metrics_type: str,
    reload: Callable[[], Awaitable[Mapping[str, object]]],
    guard: Callable[[], Guard],
) -> Answer:
    """What answers every request on the admin listener.

    Args:
        sessions: by the name of the first upstream that each belongs to.
        is_draining: whether the proxy is shutting down.
        metrics: renders the exposition text.
        metrics_type: its content type.
        reload: reads the settings again; what came of it. Raises `ControlFailed`.
        guard: who may ask what.
    """

    async def live(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.BaseRequest) -> web.Response:
        states = {name: one.ready() for name, one in sessions.items()}
        text = "ready\n"
        if is_draining():
            text = "not ready: draining\n"
        elif not all(states.values()):
            text = "not ready: no token yet\n"
        good = text == "ready\n"
        if "verbose" in request.query:
            text += "".join(
                f"{'ok ' if state else 'no '} token of {', '.join(_names(name, sessions))}\n"
                for name, state in states.items()
            )
            problems = {str(one.status().get("store") or "") for one in sessions.values()}
            text += "".join(f"no  store: {one}\n" for one in sorted(problems) if one)
        return web.Response(text=text, status=200 if good else 503)

    showing = asyncio.Lock()

    async def show_metrics(_: web.BaseRequest) -> web.Response:
        async with showing:
            began = time.monotonic()
            body = metrics()
            await asyncio.sleep(_PAUSE * (time.monotonic() - began))
        return web.Response(body=body, headers={"Content-Type": metrics_type})

    async def show(_: web.BaseRequest) -> web.Response:
        return _json({name: dict(one.status()) for name, one in sessions.items()})

    async def renew(request: web.BaseRequest) -> web.Response:
        name, session = _chosen(request, sessions)
        await session.renew()
        return _json({name: dict(session.status())})

    async def revoke(request: web.BaseRequest) -> web.Response:
        name, session = _chosen(request, sessions)
        problem = await session.revoke(request.query.get("stop") == "1")
        if problem:
            text = f"the issuer did not confirm the revocation: {problem}"
            return _json({"error": text, name: dict(session.status())}, status=502)
        return _json({name: dict(session.status())})

    async def reload_all(_: web.BaseRequest) -> web.Response:
        return _json(await reload())

    routes: dict[str, tuple[str, Kind, Answer]] = {
        **dict.fromkeys(("/livez", "/healthz", "/-/healthy"), ("GET", Kind.PROBE, live)),
        **dict.fromkeys(("/readyz", "/-/ready"), ("GET", Kind.PROBE, ready)),
        "/metrics": ("GET", Kind.METRICS, show_metrics),
        "/-/reload": ("POST", Kind.OPERATE, reload_all),
        "/token": ("GET", Kind.OPERATE, show),
        "/token/renew": ("POST", Kind.OPERATE, renew),
        "/token/revoke": ("POST", Kind.OPERATE, revoke),
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        method, kind, route = routes.get(request.path, ("", Kind.PROBE, live))
        if (refused := guard().refuse(request, kind)) is not None:
            return refused
        if not method:
            return _json({"error": "no such path", "paths": list(routes)}, status=404)
        if request.method not in {method, "HEAD" if method == "GET" else method}:
            refused = _json({"error": f"only {method} is answered here"}, status=405)
            refused.headers["Allow"] = "GET, HEAD" if method == "GET" else method
            return refused
        try:
            return await route(request)
        except UnknownUpstream as error:
            return _json({"error": str(error)}, status=400)
        except ControlFailed as error:
            return _json({"error": str(error)}, status=error.status)

    return answer


def _chosen(
    request: web.BaseRequest, sessions: Mapping[str, SessionControls]
) -> tuple[str, SessionControls]:
    known = {one: name for name in sessions for one in _names(name, sessions)}
    wanted = request.query.get("upstream") or (next(iter(known)) if len(sessions) == 1 else "")
    if wanted not in known:
        raise UnknownUpstream(f"name an upstream: {', '.join(known)}")
    return known[wanted], sessions[known[wanted]]


def _names(name: str, sessions: Mapping[str, SessionControls]) -> tuple[str, ...]:
    """All names that a session goes by, its own first."""
    return sessions[name].upstreams or (name,)


def _json(value: Mapping[str, object], *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
