"""Exchanges as an HTTP Archive (HAR 1.2), made from what may be shown.

One entry is an exchange as its caller saw it; what belongs to no field of the format stands in
fields that begin with an underscore, as it provides.
"""

import base64
from typing import Any
from urllib.parse import quote, unquote_plus

from proxy.inspector.exit import Body, Message, Shown
from proxy.inspector.looks import MASK

_NONE: dict[str, Any] = {"size": 0, "mimeType": "x-unknown"}


def opening(version: str) -> dict[str, Any]:
    """The archive without its entries; `version` is ours."""
    creator = {"name": "nomba-proxy", "version": version}
    return {"version": "1.2", "creator": creator, "pages": []}


def entry(shown: Shown, url: str) -> dict[str, Any] | None:
    """An exchange as an entry; None if its request could not be read.

    Args:
        shown: the exchange.
        url: the proxy's, which every request was sent to.
    """
    row, request = shown.row, shown.request
    if request is None:
        return None
    timings = _timings(shown)
    found: dict[str, Any] = {
        "startedDateTime": row["at"],
        "time": sum(value for key, value in timings.items() if value > 0 and key != "ssl"),
        "request": _request(request, url),
        "response": _response(shown.reply),
        "cache": {},
        "timings": timings,
    }
    if row["detail"]:
        found["comment"] = row["detail"]
    for name in ("id", "request_id", "caller", "upstream", "route", "kind", "outcome", "attempts"):
        found[f"_{name}"] = row[name]
    return found


def _request(message: Message, url: str) -> dict[str, Any]:
    method, _, rest = message.start.partition(" ")
    target, _, version = rest.rpartition(" ")
    body = message.body
    found: dict[str, Any] = {
        "method": method,
        "url": _url(url, target),
        "httpVersion": version or "HTTP/1.1",
        "cookies": [],
        "headers": _pairs(message.headers),
        "queryString": _query(target.partition("?")[2]),
        "headersSize": -1,
        "bodySize": body.size,
    }
    if body.kind != "none":
        # A text is all that fits here: bytes that are none are in Base64, and say so.
        data: dict[str, Any] = {"mimeType": body.type or "x-unknown", "params": []}
        data["text"] = body.text or ""
        if body.kind == "form":
            data["params"] = _query(body.text or "")
        if body.base64 is not None:
            data |= {"text": body.base64, "_encoding": "base64"}
        if body.note:
            data["comment"] = body.note
        found["postData"] = data
    return found


def _url(url: str, target: str) -> str:
    """An absolute URL, whatever form the target has; the mask as a URL can hold it."""
    if "://" not in target.partition("?")[0]:
        target = url + (target if target.startswith("/") else "/")
    return target.replace(MASK, quote(MASK))


def _response(message: Message | None) -> dict[str, Any]:
    if message is None:  # nothing was answered
        head: dict[str, Any] = {
            "status": 0,
            "statusText": "",
            "httpVersion": "HTTP/1.1",
            "cookies": [],
        }
        head |= {"headers": [], "content": dict(_NONE), "redirectURL": ""}
        return head | {"headersSize": -1, "bodySize": -1}
    version, _, rest = message.start.partition(" ")
    status, _, reason = rest.partition(" ")
    return {
        "status": int(status),
        "statusText": reason,
        "httpVersion": version,
        "cookies": [],
        "headers": _pairs(message.headers),
        "content": _content(message.body),
        "redirectURL": message.get("location"),
        "headersSize": -1,
        "bodySize": message.body.size,
    }


def _content(body: Body) -> dict[str, Any]:
    content: dict[str, Any] = {"size": body.size, "mimeType": body.type or "x-unknown"}
    if body.text is not None:
        content |= {"text": body.text, "size": len(body.text.encode())}
    elif body.base64 is not None:
        size = len(base64.b64decode(body.base64))
        content |= {"text": body.base64, "encoding": "base64", "size": size}
    if body.note:
        content["comment"] = body.note
    return content


def _timings(shown: Shown) -> dict[str, float]:
    """Milliseconds; `connect` holds `ssl`, and waiting for a token is `blocked`."""
    spent: dict[str, float] = {}
    for one in shown.timeline:
        spent[one.name] = spent.get(one.name, 0.0) + one.seconds * 1000
    blocked = sum(spent.get(name, 0.0) for name in ("wait for token", "renewal", "queue"))
    connect, tls = spent.get("connect"), spent.get("TLS")
    return {
        "blocked": round(blocked, 3) if blocked else -1,
        "dns": -1,
        "connect": -1 if connect is None else round(connect + (tls or 0), 3),
        "ssl": -1 if tls is None else round(tls, 3),
        "send": round(spent.get("read request", 0.0), 3),
        "wait": round(spent.get("first byte", 0.0) + spent.get("no reply", 0.0), 3),
        "receive": round(spent.get("body", 0.0), 3),
    }


def _pairs(headers: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in headers]


def _query(text: str) -> list[dict[str, str]]:
    pairs = (one.partition("=") for one in text.split("&") if one)
    return [{"name": unquote_plus(name), "value": unquote_plus(value)} for name, _, value in pairs]
