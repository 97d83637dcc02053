"""An exchange as a line to try again: curl, Python, fetch; made from what may be shown.

Each sends what was sent and nothing of its own: no header that was not there, no file that a body
names, no pattern in a URL. Where a secret stood is a placeholder.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

from proxy.inspector.exit import Field, Message
from proxy.inspector.looks import MASK
from proxy.inspector.replay import as_text

_LONGEST = 100_000  # bytes; the kernel takes 128 KiB of an argument
_KEY, _TOKEN = "NOMBA_PROXY_KEY", "NOMBA_PROXY_TOKEN"  # variables, whose values nobody knows here
# The connection's or who calls: the first are made anew, the others are a variable.
_LEFT_OUT = frozenset(
    {
        *("host", "content-length", "connection", "transfer-encoding", "keep-alive", "expect"),
        *("accept-encoding", "authorization", "proxy-authorization", "x-nomba-proxy-key"),
        *("cookie", "te", "trailer", "upgrade", "x-request-id", "origin", "referer"),
    }
)


@dataclass(frozen=True, slots=True)
class _Request:
    """What a snippet sends.

    Attributes:
        url: the proxy's, without a slash at its end.
        headers: with placeholders.
        data: the body; None for none.
        way: name and variable of the header that says who calls, with a text before it; or None.
        note: what is different from what was captured, or "".
    """

    method: str
    url: str
    target: str
    headers: list[Field]
    data: str | None
    way: tuple[str, str, str] | None
    note: str


def snippet(way: str, request: Message, *, url: str, keyed: bool) -> str:
    """A request as source text.

    Args:
        way: one of `WAYS`.
        request: as it may be shown.
        url: the proxy's, without a slash at its end.
        keyed: whether the caller had to say who it is.
    """
    method, _, rest = request.start.partition(" ")
    target = rest.rpartition(" ")[0]
    if "://" in target.partition("?")[0]:  # absolute-form: as the proxy is called
        target = "/" + target.partition("://")[2].partition("/")[2]
    body = request.body
    headers = [pair for pair in request.headers if not _is_left_out(pair[0])]
    data, note = None, ""
    if body.kind == "binary" or body.kept < body.size or body.note:
        note = "the body is not text, or was not kept whole: it is left out"
    elif body.text is not None:
        data, headers = _placeholders(body.text, "<masked>"), as_text(headers)
    names = {name.lower() for name, _ in request.headers}
    caller = None
    if keyed and "x-nomba-proxy-key" not in names and "authorization" in names:
        caller = ("Authorization", "Bearer ", _TOKEN)
    elif keyed:
        caller = ("X-Nomba-Proxy-Key", "", _KEY)
    made = _Request(
        method,
        url,
        _placeholders(target, "MASKED"),
        [(name, _placeholders(value, "MASKED")) for name, value in headers],
        data,
        caller,
        note,
    )
    return WAYS[way](made)


def _curl(one: _Request) -> str:
    if one.data is not None and len(one.data.encode("utf-8", "replace")) > _LONGEST:
        note = "the body is too long for a command line and is left out: copy as Python instead"
        one = replace(one, data=None, note=note)
    parts = ["curl -sS --globoff --path-as-is"]
    if one.method == "HEAD":
        parts.append("--head")
    elif one.method != ("GET" if one.data is None else "POST"):
        parts.append(f"-X {shlex.quote(one.method)}")
    if one.target == "*":
        parts.append("--request-target '*'")
    parts.append(shlex.quote(one.url + (one.target if one.target != "*" else "")))
    if one.way is not None:
        name, before, variable = one.way
        parts.append(f'-H "{name}: {before}${variable}"')
    # An empty value after a colon would take the header away.
    fields = [f"{name}: {value}" if value else f"{name};" for name, value in one.headers]
    if one.data is not None:
        if all(name.lower() != "content-type" for name, _ in one.headers):
            fields.append("Content-Type:")
        parts += [f"-H {shlex.quote(field)}" for field in fields]
        # Not --data: a text that begins with @ would be the name of a file.
        parts.append(f"--data-raw {shlex.quote(one.data)}")
    else:
        parts += [f"-H {shlex.quote(field)}" for field in fields]
    text = " \\\n  ".join(parts) + "\n"
    return f"# {one.note}\n{text}" if one.note else text


def _python(one: _Request) -> str:
    host = one.url.partition("://")[2]
    lines = [f"# {one.note}"] if one.note else []
    lines += ["import http.client", *(["import os"] if one.way else []), ""]
    lines.append(f"connection = http.client.HTTPConnection({host!r})")
    lines.append(
        f"connection.putrequest({one.method!r}, {one.target!r}, skip_accept_encoding=True)"
    )
    for name, value in one.headers:
        lines.append(f"connection.putheader({name!r}, {value!r}.encode())")
    if one.way is not None:
        name, before, variable = one.way
        lines.append(f"connection.putheader({name!r}, {before!r} + os.environ[{variable!r}])")
    if one.data is None:
        lines.append("connection.endheaders()")
    else:
        lines += [f"body = {one.data!r}.encode()"]
        lines.append('connection.putheader("Content-Length", str(len(body)))')
        lines.append("connection.endheaders(body)")
    lines += ["reply = connection.getresponse()", "print(reply.status, reply.read().decode())", ""]
    return "\n".join(lines)


def _fetch(one: _Request) -> str:
    notes = ["for Node.js: a page of another origin is refused"]
    notes += [one.note] if one.note else []
    data = one.data
    if data is not None and one.method in {"GET", "HEAD"}:
        notes.append(f"fetch sends no body with {one.method}: it is left out")
        data = None
    if len({name.lower() for name, _ in one.headers}) < len(one.headers):
        notes.append("fetch sends headers of one name as one")
    if one.target == "*":
        notes.append("fetch knows no target *: this is another one")
    fields = [f"    [{_js(name)}, {_js(value)}]," for name, value in one.headers]
    if one.way is not None:
        name, before, variable = one.way
        fields.append(f"    [{_js(name)}, {_js(before)} + process.env.{variable}],")
    lines = [f"// {note}" for note in notes]
    address = one.url + (one.target if one.target != "*" else "/")
    lines += [f"const reply = await fetch({_js(address)}, {{", f"  method: {_js(one.method)},"]
    lines += ["  headers: [", *fields, "  ],"] if fields else []
    if data is not None:  # as bytes: of a text it would tell the type
        lines.append(f"  body: new TextEncoder().encode({_js(data)}),")
    return "\n".join([*lines, "});", "console.log(reply.status, await reply.text());", ""])


WAYS: dict[str, Callable[[_Request], str]] = {"curl": _curl, "python": _python, "fetch": _fetch}


def _is_left_out(name: str) -> bool:
    return name.lower() in _LEFT_OUT or name.lower().startswith("sec-")


def _js(text: str) -> str:
    """A JavaScript string, which may hold none of Unicode's line ends."""
    plain = json.dumps(text, ensure_ascii=False)
    return plain.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _placeholders(text: str, instead: str) -> str:
    return text.replace(MASK, instead)
