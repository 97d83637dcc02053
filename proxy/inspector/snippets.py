"""An exchange as a line to try again: curl, Python, fetch; made from what may be shown."""

import json
import shlex

from proxy.inspector.exit import Message
from proxy.inspector.redact import MASK

WAYS = ("curl", "python", "fetch")
_KEY = "NOMBA_PROXY_KEY"
# Set by whoever sends it, or not the request's own.
_LEFT_OUT = frozenset(
    {
        *("host", "content-length", "connection", "transfer-encoding", "keep-alive", "expect"),
        *("accept-encoding", "authorization", "proxy-authorization", "x-nomba-proxy-key"),
        *("cookie", "te", "upgrade", "x-request-id", "origin", "referer"),
    }
)


def snippet(way: str, request: Message, *, url: str, keyed: bool) -> str:
    """A request as source text.

    Args:
        way: one of `WAYS`.
        request: as it may be shown; masks in it become placeholders.
        url: the proxy's, without a slash at its end.
        keyed: whether the caller had to say who it is.
    """
    method, _, rest = request.start.partition(" ")
    target = rest.rpartition(" ")[0]
    if not target.startswith("/"):  # absolute-form: as the proxy is called
        target = "/" + target.partition("://")[2].partition("/")[2]
    address = url + _placeholders(target, "MASKED")
    headers = [
        (name, _placeholders(value, "MASKED"))
        for name, value in request.headers
        if name.lower() not in _LEFT_OUT and not name.lower().startswith("sec-")
        if value != MASK
    ]
    body = request.body
    data = None if body.text is None else _placeholders(body.text, "<masked>")
    note = ""
    if body.kind == "binary" or body.kept < body.size:
        note, data = "the body is not text, or was not kept whole: it is left out", None
    if way == "curl":
        return _curl(method, address, headers, data, keyed=keyed, note=note)
    if way == "python":
        return _python(method, address, headers, data, keyed=keyed, note=note)
    return _fetch(method, address, headers, data, keyed=keyed, note=note)


def _curl(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    data: str | None,
    *,
    keyed: bool,
    note: str,
) -> str:
    parts = ["curl -sS"]
    if method == "HEAD":
        parts.append("--head")
    elif method != ("GET" if data is None else "POST"):
        parts.append(f"-X {shlex.quote(method)}")
    parts.append(shlex.quote(url))
    if keyed:
        parts.append(f'-H "X-Nomba-Proxy-Key: ${_KEY}"')
    parts += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers]
    if data is not None:
        parts.append(f"--data-binary {shlex.quote(data)}")
    text = " \\\n  ".join(parts) + "\n"
    return f"# {note}\n{text}" if note else text


def _python(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    data: str | None,
    *,
    keyed: bool,
    note: str,
) -> str:
    lines = [*(["import os"] if keyed else []), "import urllib.request", ""]
    lines += [f"# {note}"] if note else []
    lines += ["request = urllib.request.Request(", f"    {url!r},", f"    method={method!r},"]
    fields = [f"        {name!r}: {value!r}," for name, value in headers]
    if keyed:
        fields.append(f'        "X-Nomba-Proxy-Key": os.environ["{_KEY}"],')
    lines += ["    headers={", *fields, "    },"] if fields else []
    if data is not None:
        lines.append(f"    data={data!r}.encode(),")
    lines += [")", "with urllib.request.urlopen(request) as reply:"]
    lines += ["    print(reply.status, reply.read().decode())", ""]
    return "\n".join(lines)


def _fetch(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    data: str | None,
    *,
    keyed: bool,
    note: str,
) -> str:
    fields = [f"    {_js(name)}: {_js(value)}," for name, value in headers]
    if keyed:
        fields.append(f'    "X-Nomba-Proxy-Key": process.env.{_KEY},')
    lines = ["// for Node.js: a page of another origin is refused"]
    lines += [f"// {note}"] if note else []
    lines += [f"const reply = await fetch({_js(url)}, {{", f"  method: {_js(method)},"]
    lines += ["  headers: {", *fields, "  },"] if fields else []
    if data is not None:
        lines.append(f"  body: {_js(data)},")
    return "\n".join([*lines, "});", "console.log(reply.status, await reply.text());", ""])


def _js(text: str) -> str:
    return (
        json.dumps(text, ensure_ascii=False)
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _placeholders(text: str, instead: str) -> str:
    return text.replace("%E2%80%A2" * 3, instead).replace(MASK, instead)
