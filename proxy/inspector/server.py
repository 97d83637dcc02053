"""The inspector's own listener: the page, its JSON, its events.

It shows what others send, so it opens to nobody but whoever was given its address: a random key in
the URL, then a cookie. It answers this machine only, no other page, and nothing leaves it
undecided: everything shown comes from `Exit`.
"""

import asyncio
import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import web

from proxy.core.browser import Pages
from proxy.core.heads import INSPECTOR_COOKIE
from proxy.errors import ProxyError
from proxy.inspector.choose import Filter, FilterUnknown
from proxy.inspector.exit import Exit, Shown
from proxy.inspector.har import entry, opening
from proxy.inspector.replay import Replayer, ReplayRefused, left_out
from proxy.inspector.ring import Recording, Ring
from proxy.inspector.sessions import Sessions
from proxy.inspector.snippets import WAYS, snippet
from proxy.inspector.views import comparison, detail

_PAGES = Pages()
_LOOK_EVERY = 0.1  # seconds; so long a change is not seen at most
_QUIET = 15.0  # seconds after which a stream says that it is still there
_TURN = 0.002  # seconds after which others get theirs
_CHUNK = 50  # rows in an event
_MOST_FACETS = 500
_MAX_BODY = 4 * 1024 * 1024  # bytes of an edited request
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_LOCKED = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>nomba-proxy inspector</title>
<h1>nomba-proxy inspector</h1>
<p>This page is not open to this browser. Open the address that the proxy printed when it started:
it ends with <code>?token=…</code>, which is new at every start.</p>
"""

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_ROUTE = re.compile(
    r"/api/exchanges(?:/(?P<id>\d{1,15})(?:/(?P<what>copy|har|replay|diff)(?:/(?P<other>\d{1,15}))?)?)?"
    r"|/api/sessions/(?P<name>[a-z0-9_-]+)/renew"
)


class _Problem(Exception):
    def __init__(self, status: int, text: str, **more: object) -> None:
        super().__init__(text)
        self.status = status
        self.body = {"error": text} | {key: value for key, value in more.items() if value}


@dataclass(frozen=True, slots=True)
class About:
    """What the page says of the proxy.

    Attributes:
        version: ours.
        url: of the traffic listener.
        keyed: whether a caller had to say who it is.
    """

    version: str
    url: str
    keyed: Callable[[str], bool]


@dataclass(slots=True)
class Inspector:
    """The listener's answers.

    Attributes:
        ring, exit, sessions, replayer: what is shown, and done.
        about: the proxy.
        is_loopback: whether a host name is this machine's own.
        token: opens it; whoever has it sees everything.
    """

    ring: Ring
    exit: Exit
    sessions: Sessions
    replayer: Replayer
    about: About
    is_loopback: Callable[[str], bool]
    token: str = field(default_factory=partial(secrets.token_urlsafe, 24))
    _cookie: str = field(default_factory=partial(secrets.token_urlsafe, 24))
    _boot: str = field(default_factory=partial(secrets.token_hex, 4))
    _facets: dict[str, set[str]] = field(
        default_factory=lambda: {"methods": set(), "callers": set(), "families": set()}
    )
    _closing: bool = False

    def close(self) -> None:
        """End the streams."""
        self._closing = True

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request (`web.Server`'s handler)."""
        try:
            response = await self._answer(request)
        except _Problem as problem:
            response = _json(problem.body, status=problem.status)
        except ConnectionError:  # whoever asked has gone
            response = _json({})
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        opening = path == "/" and request.method in {"GET", "HEAD"}
        if not self._from_here(request, page=opening):
            raise _Problem(403, "the inspector answers this machine only, and no other page")
        if opening and _same(request.query.get("token", ""), self.token):
            page = _static("index.html")
            # A redirect would lose the cookie where a link of another page led here (Strict).
            page.set_cookie(
                _cookie(request), self._cookie, httponly=True, samesite="Strict", path="/"
            )
            return page
        if not self._is_open(request):
            if opening:
                return web.Response(text=_LOCKED, status=401, content_type="text/html")
            raise _Problem(401, "not open: use the address that the proxy printed")
        if request.method in {"GET", "HEAD"}:
            return await self._get(request, path)
        if request.method == "POST":
            return await self._post(request, path)
        raise _Problem(405, "only GET and POST are answered here")

    # -- who may look ---------------------------------------------------------------------------

    def _from_here(self, request: web.BaseRequest, *, page: bool) -> bool:
        """Whether it was called by a name of this machine, and by no other page."""
        try:
            host = request.url.host or ""
        except ValueError:
            return False
        if not self.is_loopback(host):
            return False
        site = request.headers.get("Sec-Fetch-Site", "none")
        if page and request.headers.get("Sec-Fetch-Mode") == "navigate":
            return True  # a link led here; what it opens is its own page, and needs the key
        try:
            _PAGES.check(request.raw_headers)
        except ProxyError:
            return False
        return site in {"none", "same-origin"}

    def _is_open(self, request: web.BaseRequest) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return _same(bearer, self.token) or _same(
            request.cookies.get(_cookie(request), ""), self._cookie
        )

    # -- what there is to get -------------------------------------------------------------------

    async def _get(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        simple: dict[str, Answer] = {
            "/api/info": self._info,
            "/api/exchanges": self._list,
            "/api/events": self._events,
            "/api/har": self._har,
            "/api/sessions": self._sessions,
        }
        if path in simple:
            if request.method == "HEAD" and path == "/api/events":
                raise _Problem(405, "events are for GET: they never end")
            return await simple[path](request)
        found = _ROUTE.fullmatch(path)
        if found is None:
            return _static(path.removeprefix("/") or "index.html")
        if found["id"] is None or found["what"] == "replay":
            raise _Problem(405, "this is a POST")
        recording = self._recording(found["id"])
        if found["what"] is None:
            shown = await self._show(recording)
            return _json(
                detail(
                    shown,
                    environment=self._environment(shown),
                    replay=self.replayer.outlook(recording),
                )
            )
        if found["what"] == "copy":
            return await self._copy(request, recording)
        if found["what"] == "har":
            return await self._archive(request, [recording])
        if found["other"] is None:
            raise _Problem(404, "name the other exchange: …/diff/ID")
        other = await self._show(self._recording(found["other"]))
        pair = await self._show(recording), other
        return _json(await asyncio.to_thread(comparison, *pair))

    async def _info(self, _: web.BaseRequest) -> web.StreamResponse:
        environments = {name: one.environment for name, one in self.sessions.views.items()}
        about = {"version": self.about.version, "proxy": self.about.url}
        return _json(about | {"environments": environments, "reveal": self.exit.reveals})

    async def _list(self, request: web.BaseRequest) -> web.StreamResponse:
        chosen, most = _filter(request), _count(request, "limit")
        rows = [row async for row in self._rows(self.ring, chosen)]
        if most is not None:
            rows = rows[-most:] if most else []
        return _json({"change": self._mark(self.ring.change), "exchanges": rows})

    async def _har(self, request: web.BaseRequest) -> web.StreamResponse:
        chosen = _filter(request)
        wanted = [row["id"] async for row in self._rows(self.ring, chosen)]
        found = (self.ring.get(number) for number in wanted)
        return await self._archive(request, filter(None, found))

    async def _sessions(self, _: web.BaseRequest) -> web.StreamResponse:
        return _json({"sessions": self.sessions.show()})

    async def _copy(self, request: web.BaseRequest, recording: Recording) -> web.StreamResponse:
        way = request.query.get("as", "curl")
        if way not in WAYS:
            raise _Problem(400, f"as is one of {', '.join(WAYS)}")
        shown = await self._show(recording)
        if shown.request is None:
            raise _Problem(409, "the request could not be read, so there is nothing to copy")
        keyed = self.about.keyed(shown.row["caller"])
        text = snippet(way, shown.request, url=self.about.url, keyed=keyed)
        return web.Response(body=text.encode("utf-8", "replace"), content_type="text/plain")

    async def _archive(
        self, request: web.BaseRequest, recordings: Iterable[Recording]
    ) -> web.StreamResponse:
        """An archive, an entry at a time: all of them together could be larger than memory."""
        name = {"Content-Disposition": 'attachment; filename="nomba-proxy.har"'}
        stream = web.StreamResponse(headers=_HEADERS | name | {"Content-Type": "application/json"})
        await stream.prepare(request)
        head = orjson.dumps(opening(self.about.version)).removesuffix(b"}")
        between = b'{"log":' + head + b',"entries":['
        for recording in recordings:
            if recording.done and not recording.gone:
                made = await asyncio.to_thread(self._entry, recording)
                if made:
                    await stream.write(between + made)
                    between = b","
        await stream.write((between if between != b"," else b"") + b"]}}")
        return stream

    def _entry(self, recording: Recording) -> bytes:
        try:
            made = entry(self.exit.show(recording), self.about.url)
        except Exception:  # noqa: BLE001 - one that cannot be shown must not end the archive
            return b""
        return b"" if made is None else _dumps(made)

    # -- events -----------------------------------------------------------------------------------

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        chosen = _filter(request)
        last = _count(request, "last")
        ring = self.ring
        told = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        change = self._since(told)
        stream = web.StreamResponse(
            headers=_HEADERS | {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await stream.prepare(request)
        era = ring.era
        facets = 0
        ahead: dict[int, int] = {}  # what was sent newer than its place in the order
        first = change is None
        if first:
            await stream.write(_event("reset", {}, self._mark(0)))
        live = not first
        change = change or 0
        quiet = 0.0
        loop = asyncio.get_running_loop()
        turn = _Turns()
        try:
            while not self._closing and request.transport is not None:
                if ring.era != era:
                    era, change, live = ring.era, 0, True
                    ahead.clear()
                    await stream.write(_event("reset", {}, self._mark(0)))
                if ring.change == change and not first:
                    if loop.time() - quiet > _QUIET:
                        quiet = loop.time()
                        await stream.write(b": here\n\n")
                    await asyncio.sleep(_LOOK_EVERY)
                    continue
                # What changes while they are sent comes again: a mark tells only what was sent.
                upto, fresh = ring.change, [(one.change, one) for one in ring.since(change)]
                if first and last is not None:
                    fitting = {row["id"] async for row in self._rows(ring, chosen)}
                    fresh = [pair for pair in fresh if pair[1].number in fitting]
                    fresh = fresh[-last:] if last else []
                for at in range(0, max(len(fresh), 1), _CHUNK):
                    some = fresh[at : at + _CHUNK]
                    change = some[-1][0] if some else upto
                    rows, drop = [], []
                    for then, one in some:
                        await turn()  # what follows is of one moment
                        if ahead.pop(one.number, 0) == one.change:
                            continue  # as it is now it was sent already
                        if one.change != then:
                            ahead[one.number] = one.change
                        row = None if one.gone else self._row(one, chosen)
                        if row is not None:
                            rows.append(row)
                        elif live:
                            drop.append(one.number)
                    if facets != (facets := sum(map(len, self._facets.values()))):
                        known = {name: sorted(found) for name, found in self._facets.items()}
                        await stream.write(_event("facets", known))
                    data = {"rows": rows, "drop": drop, "oldest": ring.oldest}
                    await stream.write(_event("rows", data, self._mark(change)))
                change, first, live = max(change, upto), False, True
                quiet = loop.time()
                await asyncio.sleep(_LOOK_EVERY)
        except ConnectionError:
            pass  # whoever looked has gone
        return stream

    def _mark(self, change: int) -> str:
        """Where a stream can be taken up again."""
        return f"{self._boot}.{self.ring.era}.{change}"

    def _since(self, told: str) -> int | None:
        """The change that a mark names; None if it is of another start or era."""
        boot, _, rest = told.partition(".")
        era, _, change = rest.partition(".")
        if boot != self._boot or era != str(self.ring.era) or not change.isdecimal():
            return None
        return int(change)

    # -- rows and exchanges -----------------------------------------------------------------------

    def _row(self, recording: Recording, chosen: Filter) -> dict[str, Any] | None:
        row = self.exit.row(recording)
        for name, key in (("methods", "method"), ("callers", "caller"), ("families", "family")):
            if len(self._facets[name]) < _MOST_FACETS:
                self._facets[name].add(row[key])
        return row if chosen.fits(row) else None

    async def _rows(self, recordings: Iterable[Recording], chosen: Filter) -> Any:
        turn = _Turns()
        for one in recordings:
            await turn()
            if not one.gone and (row := self._row(one, chosen)) is not None:
                yield row

    def _recording(self, number: str) -> Recording:
        found = self.ring.get(int(number))
        if found is None:
            raise _Problem(404, "this exchange is not here (any more): the oldest ones go first")
        return found

    async def _show(self, recording: Recording) -> Shown:
        return await asyncio.to_thread(self.exit.show, recording)

    def _environment(self, shown: Shown) -> str:
        found = self.sessions.views.get(shown.row["upstream"])
        return found.environment if found is not None else "other"

    # -- what there is to do ------------------------------------------------------------------------

    async def _post(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.content_type != "application/json":  # which no page of others can send unasked
            raise _Problem(415, "send Content-Type: application/json")
        if path == "/api/clear":
            self.ring.clear()
            return web.Response(status=204)
        found = _ROUTE.fullmatch(path)
        if found is not None and found["name"] is not None:
            return await self._renew(found["name"])
        if found is None or found["what"] != "replay" or found["other"] is not None:
            raise _Problem(404, "no such path")
        recording = self._recording(found["id"])
        edits = await _body(request)
        # Whoever asked may leave: what was sent is heard out.
        sending = asyncio.ensure_future(self.replayer.replay(recording, edits))
        try:
            made = await asyncio.shield(sending)
        except ReplayRefused as refused:
            more = {"hint": refused.hint, "confirm": refused.confirm}
            raise _Problem(refused.status, str(refused), **more) from None
        return _json({"id": made.number, "left_out": left_out(recording)})

    async def _renew(self, name: str) -> web.StreamResponse:
        view = self.sessions.views.get(name)
        if view is None:
            raise _Problem(404, f"there is no upstream {name}")
        try:
            await view.renew()
        except Exception as error:  # noqa: BLE001 - its text is for people
            raise _Problem(502, str(error)) from None
        shown = self.sessions.show()
        return _json(next(one for one in shown if one["name"] == name))


class _Turns:
    """Lets others have theirs: what is shown is made on the loop that forwards, a little at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    async def __call__(self) -> None:
        """Wait a turn if this one has been long enough."""
        if self._loop.time() - self._since > _TURN:
            await asyncio.sleep(0)
            self._since = self._loop.time()


def _cookie(request: web.BaseRequest) -> str:
    """The cookie's name: of two inspectors in one browser, each has its own."""
    return f"{INSPECTOR_COOKIE.decode()}_{request.url.port or 80}"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


def _filter(request: web.BaseRequest) -> Filter:
    try:
        return Filter.read(request.query)
    except FilterUnknown as error:
        raise _Problem(400, str(error)) from None


def _count(request: web.BaseRequest, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise _Problem(400, f"{name} is a number")
    return int(text)


async def _body(request: web.BaseRequest) -> dict[str, Any]:
    data = b""
    async for part in request.content.iter_any():
        data += part
        if len(data) > _MAX_BODY:
            raise _Problem(413, f"more than {_MAX_BODY} bytes")
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Problem(400, "the body is a JSON object")
    return found


def _static(name: str) -> web.Response:
    """A file of the page."""
    kind = _TYPES.get(name.rpartition(".")[2])
    if kind is None or not re.fullmatch(r"[a-z]+\.[a-z]+", name):
        raise _Problem(404, "no such path")
    try:
        data = files("proxy.inspector").joinpath("static", name).read_bytes()
    except FileNotFoundError:
        raise _Problem(404, "no such path") from None
    return web.Response(body=data, content_type=kind, charset="utf-8")


def _json(value: Mapping[str, object], *, status: int = 200) -> web.Response:
    return web.Response(body=_dumps(value), status=status, content_type="application/json")


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half a character of UTF-16, which JSON can say and UTF-8 cannot
        return json.dumps(value).encode()


def _event(name: str, data: Mapping[str, object], mark: str = "") -> bytes:
    head = f"id: {mark}\n" if mark else ""
    return f"{head}event: {name}\ndata: ".encode() + _dumps(data) + b"\n\n"
