"""Render the replies we make ourselves: Nomba's envelope plus our part.

Existing SDKs read `code` and `description`; `proxy` says what happened, what became of
the request and what to do next.
"""

from collections.abc import Mapping
from http import HTTPStatus

import orjson

from proxy.errors import MethodNotAllowed, Outcome, ProxyError


def local_reply(
    status: int,
    *,
    body: Mapping[str, object],
    request_id: str,
    outcome: Outcome,
    date: str,
    keep_alive: bool,
    http10: bool,
    head_only: bool = False,
    extra: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """A complete JSON reply.

    Args:
        status: HTTP status.
        body: the envelope.
        request_id: for `X-Request-Id`.
        outcome: for `Nomba-Proxy-Outcome`.
        date: an HTTP date.
        keep_alive: whether the connection stays open.
        http10: whether the caller speaks HTTP/1.0.
        head_only: leave the body out, for HEAD.
        extra: further header fields.
    """
    payload = orjson.dumps(body)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        f"Date: {date}",
        f"X-Request-Id: {request_id}",
        f"Nomba-Proxy-Outcome: {outcome}",
        *(f"{name}: {value}" for name, value in extra),
    ]
    if not keep_alive:
        lines.append("Connection: close")
    elif http10:
        lines.append("Connection: keep-alive")
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head if head_only else head + payload


def refusal_parts(
    error: ProxyError, *, request_id: str
) -> tuple[dict[str, object], tuple[tuple[str, str], ...]]:
    """The envelope of a refusal and the header fields that go with it."""
    proxy: dict[str, object] = {
        "error": error.code,
        "outcome": str(error.outcome),
        "request_id": request_id,
    }
    if error.hint:
        proxy["hint"] = error.hint
    extra = [("Nomba-Proxy-Error", error.code)]
    if error.retry_after is not None:
        extra.append(("Retry-After", str(error.retry_after)))
        proxy["retry_after"] = error.retry_after
    if error.status == 401:  # RFC 9110 section 15.5.2; no Basic: a browser would ask its user
        extra.append(("WWW-Authenticate", 'Bearer realm="nomba-proxy"'))
    if isinstance(error, MethodNotAllowed):
        extra.append(("Allow", error.allow))
    envelope: dict[str, object] = {
        "code": str(error.status),
        "description": error.description,
        "proxy": proxy,
    }
    return envelope, tuple(extra)
