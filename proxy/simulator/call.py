"""One call of an operation: what it asks for, and the replies it can get."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import parse_qsl, unquote

from proxy.simulator.book import NAIRA, Record
from proxy.simulator.messages import (
    Fraction,
    Received,
    Reply,
    failure,
    json_object,
    reply_json,
)

_TOO_MUCH = Decimal(10) ** 12  # naira; no amount is larger
_AMOUNT = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_PAGE = 20  # rows of a page unless `limit` says otherwise
_PAGE_MOST = 100


class Refused(Exception):
    """The call is not carried out.

    Attributes:
        reply: what it gets instead.
    """

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def refused(status: int, description: str) -> Refused:
    """A refusal in Nomba's envelope (D)."""
    return Refused(failure(status, description=description))


class Call:
    """A request that may be carried out.

    Attributes:
        operation: method and template, as in the endpoint table.
        params: the path's variable segments by their names, decoded.
        query: decoded; of a repeated name the first.
        form: the JSON object in the body; empty if there is no body.
    """

    def __init__(self, request: Received, *, operation: str, params: Mapping[str, str]) -> None:
        self.operation = operation
        self.params = {name: unquote(value) for name, value in params.items()}
        self.query = dict(reversed(parse_qsl(request.query, keep_blank_values=True)))
        form = json_object(request.body) if request.body else {}
        if form is None:
            raise refused(400, "The body is no JSON object")
        self.form: Record = form

    @property
    def code(self) -> str:
        """The envelope code of a success: `200` on v2, `00` elsewhere (D)."""
        return "200" if " /v2/" in self.operation else "00"

    def ok(self, data: object, **more: object) -> Reply:
        """HTTP 200 in Nomba's envelope (D)."""
        content = {"code": self.code, "description": "Success", **more, "data": visible(data)}
        return reply_json(200, content=content)

    def field(self, path: str) -> object:
        """A field of the body, `outer.inner` for a nested one; None if it is not there."""
        value: object = self.form
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def text(self, path: str) -> str:
        """A field that has to be a text with something in it.

        Raises:
            Refused: it is not.
        """
        value = self.field(path)
        if not isinstance(value, str) or isinstance(value, Fraction) or not value.strip():
            raise refused(400, f"{path} must be a text")
        return value

    def texts(self, *paths: str) -> Record:
        """Those of the named fields that are there; each has to be a text."""
        return {path: self.text(path) for path in paths if self.field(path) is not None}

    def naira_only(self, path: str) -> None:
        """Refuse another currency than naira, where only that is simulated."""
        if self.texts(path).get(path, NAIRA) != NAIRA:
            raise refused(400, f"{path}: only {NAIRA} is simulated here")

    def amount(self, path: str = "amount") -> Decimal:
        """A field that has to be money: number or text (D/O), above 0, in whole kobo (A).

        Raises:
            Refused: it is not.
        """
        value = self.field(path)
        if type(value) is int or (isinstance(value, str) and _AMOUNT.fullmatch(value)):
            amount = Decimal(value)
            if 0 < amount <= _TOO_MUCH:
                rounded = amount.quantize(Decimal("0.01"))
                if rounded == amount:
                    return rounded
        raise refused(400, f"{path} must be an amount above 0 with at most two decimals")

    def cursor_page(self, rows: Iterable[Record], *, newest_first: bool = False) -> Record:
        """One page of a list that is paged by `limit` and `cursor` (D), query or body.

        A cursor names the last record seen, so what comes or goes meanwhile makes
        no gap and no double.

        Args:
            rows: records of one table, oldest first.
            newest_first: they are given the other way.

        Returns:
            `results`, and `cursor`: the next page's, empty on the last.
        """
        limit = self._whole("limit", default=_PAGE, most=_PAGE_MOST)
        given = str(self.query.get("cursor") or self.field("cursor") or "")
        every = list(rows)
        if given:
            try:
                seen = int(base64.b64decode(given, altchars=b"-_", validate=True))
            except ValueError:
                raise refused(400, "cursor is none of ours") from None
            every = [
                one for one in every if (one["_n"] < seen if newest_first else one["_n"] > seen)
            ]
        page = every[:limit]
        last = str(page[-1]["_n"]).encode() if len(every) > limit else b""
        return {"results": visible(page), "cursor": base64.urlsafe_b64encode(last).decode()}

    def numbered_page(self, rows: Iterable[Record]) -> Record:
        """One page of a list that is paged by `page`, from 1 (A)."""
        every = list(rows)
        size = self._whole("limit", default=_PAGE, most=_PAGE_MOST)
        page = self._whole("page", default=1, most=1_000_000)
        return {
            "results": every[(page - 1) * size : page * size],
            "page": page,
            "total": len(every),
        }

    def _whole(self, name: str, *, default: int, most: int) -> int:
        value = self.query.get(name, self.field(name))
        if value is None or value == "":
            return default
        text = str(value)
        if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < 1:
            raise refused(400, f"{name} must be a whole number above 0")
        return min(int(text), most)


def visible(value: object) -> object:
    """A value without what is the books' own: names that begin with an underscore."""
    if isinstance(value, dict):
        return {key: visible(one) for key, one in value.items() if key[:1] != "_"}
    return [visible(one) for one in value] if isinstance(value, list) else value


Handler = Callable[[Call], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a template leads; segments in braces stand for one segment each."""

    operation: str
    segments: tuple[str, ...]
    handler: Handler


class Router:
    """Finds the handler of a request; literal segments win over variable ones.

    Args:
        handlers: by operation, e.g. `GET /v1/accounts/{subAccountId}/balance`.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._routes: dict[int, list[Route]] = {}
        for operation, handler in handlers.items():
            segments = tuple(operation.partition(" ")[2].split("/"))
            route = Route(operation, segments, handler)
            self._routes.setdefault(len(segments), []).append(route)
        for routes in self._routes.values():
            routes.sort(key=lambda route: [one.startswith("{") for one in route.segments])

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route and its variable segments; None if the path leads nowhere.

        Raises:
            Refused: the path is known, but not with this method.
        """
        given = path.split("/")
        found = False
        for route in self._routes.get(len(given), ()):
            params = _match(route.segments, given)
            if params is None:
                continue
            found = True
            if route.operation.startswith(f"{method} "):
                return route, params
        if found:
            raise refused(405, "Method not allowed")
        return None


def _match(segments: tuple[str, ...], given: list[str]) -> dict[str, str] | None:
    params = {}
    for want, have in zip(segments, given, strict=True):
        if want.startswith("{") and have:
            params[want[1:-1]] = have
        elif want != have:
            return None
    return params


def number(amount: Decimal | str) -> float | int:
    """An amount as a JSON number, as some replies have it (D/O)."""
    value = Decimal(amount)
    return int(value) if value == value.to_integral_value() else float(value)
