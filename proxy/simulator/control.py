"""The control API: faults, switches, what was received and what was moved, on a port of its own.

Plain JSON over HTTP, for curl and for `client.py`; docs/simulator.md shows every call.
"""

import base64
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from proxy.simulator.faults import KINDS, fits, make_fault
from proxy.simulator.messages import Received, Reply, failure, reply_json
from proxy.simulator.script import Waiting
from proxy.simulator.server import Server, Site
from proxy.simulator.simulator import Simulator
from proxy.simulator.switches import Switches

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class Control:
    """The control API of one simulator.

    Args:
        simulator: what is controlled.

    Attributes:
        origin: `http://host:port` once started, else empty.
        routes: what it answers, by method and path.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.origin = ""
        self.routes: Mapping[str, Callable[[Received], object]] = {
            "GET /": lambda _: {"routes": list(self.routes), "faults": _kinds()},
            "GET /switches": lambda _: _switches(simulator),
            "PATCH /switches": self._switch,
            "GET /faults": lambda _: [_waiting(one) for one in simulator.faults],
            "POST /faults": self._fault,
            "DELETE /faults": lambda _: self._do(simulator.faults.clear),
            "POST /expire": lambda _: self._do(simulator.expire),
            "POST /revoke": lambda _: self._do(simulator.revoke),
            "POST /reset": lambda _: self._do(simulator.reset),
            "POST /pay": lambda request: simulator.pay(request.body),
            "GET /received": self._received,
            "DELETE /received": lambda _: self._do(simulator.forget_received),
            "GET /ledger": lambda _: simulator.show_ledger(),
        }
        site = Site(
            accept=lambda: False,
            head=lambda _: None,
            whole=lambda _: None,
            answer=self._answer,
            stamp=lambda: (("Cache-Control", "no-store"),),
            sleep=_never,
            trouble=simulator.trouble,
        )
        self._server = Server(site)

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        self.origin = await self._server.start(host, port=port)

    async def stop(self) -> None:
        """Stop listening; harmless when not started."""
        await self._server.stop()

    async def _answer(self, request: Received, _: object) -> Reply:
        browser = request.has("Origin") or request.has("Sec-Fetch-Site")
        if browser or not _is_plain_host(request.header("Host")):
            # A web page could reach a local port through a browser; no page is welcome.
            return failure(403, description="Call this from a program, by IP address or localhost")
        route = self.routes.get(f"{request.method} {request.path}")
        if route is None:
            methods = [one.split(" ")[0] for one in self.routes if one.endswith(f" {request.path}")]
            if methods:
                return failure(405, description=f"{request.path} takes {', '.join(methods)}")
            return failure(404, description=f"There is: {', '.join(self.routes)}")
        try:
            answer = route(request)
        except ValueError as error:
            return failure(400, description=str(error))
        return answer if isinstance(answer, Reply) else reply_json(200, content=answer)

    def _do(self, work: Callable[[], object]) -> dict[str, bool]:
        work()
        return {"ok": True}

    def _switch(self, request: Received) -> object:
        self._simulator.switches.change(_json_object(request.body))
        return _switches(self._simulator)

    def _fault(self, request: Received) -> object:
        options = _json_object(request.body)
        name = options.pop("fault", None)
        if not isinstance(name, str):
            raise ValueError(f'name the fault: {{"fault": …}}; there are: {", ".join(KINDS)}')
        self._simulator.inject(make_fault(name, options))
        return [_waiting(one) for one in self._simulator.faults]

    def _received(self, request: Received) -> object:
        """`?path=` a pattern as faults have, `?after=N` what came after number N."""
        query = dict(parse_qsl(request.query))
        path, after = query.pop("path", "*"), query.pop("after", "0")
        if query:
            raise ValueError(f"there is path and after, and no {', '.join(query)}")
        if not (after.isascii() and after.isdigit() and len(after) < 19):
            raise ValueError("after must be a number that a request had")
        return [
            _shown(one)
            for one in self._simulator.received
            if one.number > int(after) and fits(one.path, pattern=path)
        ]


async def _never(_: float) -> None:  # nothing here waits
    return


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("the body must be a JSON object")
    return content


def _is_plain_host(host: str | None) -> bool:
    """Whether a Host is none that a stranger's DNS could have made (DNS rebinding).

    An address, `localhost`, or a name without dots, as containers have.
    """
    found = _HOST.fullmatch(host or "")
    if found is None:
        return False
    name = found[1].strip("[]")
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(".localhost")
    return True


def _switches(simulator: Simulator) -> dict[str, object]:
    """The switches; secrets that somebody chose are not told."""
    shown, usual = simulator.switches.shown(), Switches().shown()
    hidden = (name for name in ("client_secret", "other_clients") if shown[name] != usual[name])
    return {**shown, **dict.fromkeys(hidden, "***")}


def _kinds() -> dict[str, object]:
    return {
        name: {"about": kind.about, "options": dict(kind.options)} for name, kind in KINDS.items()
    }


def _waiting(one: Waiting) -> dict[str, object]:
    fault = one.fault
    left = "always" if one.left is None else one.left
    named = {"fault": fault.name, "path": fault.path, "method": fault.method, "left": left}
    return {**named, "probability": fault.probability}


def _shown(request: Received) -> dict[str, object]:
    """A request as JSON; its head byte for byte, each byte a character (Latin-1)."""
    shown: dict[str, object] = {
        "number": request.number,
        "connection": request.connection,
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "head": request.raw_head.decode("latin-1"),
        "headers": [list(pair) for pair in request.headers],
        "whole": request.whole,
        "status": request.status,
    }
    try:
        shown["body"] = request.body.decode()
    except UnicodeDecodeError:
        shown["body_base64"] = base64.b64encode(request.body).decode()
    return shown
