"""`nomba-proxy tail`: every exchange as it ends, one a line."""

import argparse
import contextlib
import http.client
import json
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from proxy.cli.inspector import Asker, Gone, NoInspector, filters, read
from proxy.core.printable import printable
from proxy.settings import Settings

_SILENT = 40.0  # seconds without a word after which a stream is dead: one comes every 15
_REMEMBERED = 1000
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
_COLOURS = {"ok": "32", "in_flight": "33", "failed": "31", "unknown": "1;37;41", "pending": "2"}
_SIGNS = {"ok": "✓", "in_flight": "…", "failed": "✗", "unknown": "?", "pending": "·"}


def tail(settings: Settings, arguments: argparse.Namespace, *, plain: bool) -> int:
    """Print exchanges until it is interrupted; the exit code.

    Args:
        settings: say where the inspector is.
        arguments: of the command line.
        plain: no colours, whatever reads it.
    """
    asker = Asker(settings, url=arguments.url)
    query = filters(arguments)
    try:
        if not arguments.follow:
            wanted = query | {"limit": str(arguments.last)}
            reply = asker.open("/api/exchanges", wanted, headers={}, timeout=30)
            rows = read(reply)["exchanges"]
        else:
            rows = _follow(asker, query, last=arguments.last)
        for row in rows:
            if row["state"] == "pending" and arguments.status != "pending":
                continue
            text = printable(json.dumps(row)) if arguments.json else _line(row, colours=not plain)
            print(text, flush=True)
    except (NoInspector, Gone) as error:
        print(f"nomba-proxy: {printable(str(error), lines=True)}", file=sys.stderr)
        return 1
    return 0


def _follow(asker: Asker, query: dict[str, str], *, last: int) -> Iterator[dict[str, Any]]:
    """Rows as they come, over as many connections as it takes."""
    mark, failures = "", 0
    ended: dict[tuple[str, int], None] = {}  # after a break the last one may come again
    while True:
        headers = {"Last-Event-ID": mark} if mark else {}
        try:
            reply = asker.open(
                "/api/events", query | {"last": str(last)}, headers=headers, timeout=_SILENT
            )
        except (Gone, NoInspector) as error:
            if not mark or (isinstance(error, NoInspector) and failures >= len(_PAUSES)):
                raise
            if not failures:
                print("nomba-proxy: the inspector is away; waiting for it", file=sys.stderr)
            time.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1
            continue
        failures = 0
        with reply, contextlib.suppress(OSError, http.client.HTTPException):
            for name, data, told in _events(reply):
                mark = told or mark
                for row in json.loads(data)["rows"] if name == "rows" else ():
                    known = mark.rpartition(".")[0], row["id"]
                    if known not in ended:
                        yield row
                    if row["state"] != "pending":
                        ended[known] = None
                        if len(ended) > _REMEMBERED:
                            del ended[next(iter(ended))]
        time.sleep(_PAUSES[0])


def _events(stream: IO[bytes]) -> Iterator[tuple[str, str, str]]:
    """Name, data and id of each event of a stream (WHATWG HTML, server-sent events)."""
    fields = {"event": "", "data": "", "id": ""}
    for line in stream:
        text = line.decode().rstrip("\r\n")
        if not text:
            if fields["event"]:
                yield fields["event"], fields["data"], fields["id"]
            fields = {"event": "", "data": "", "id": ""}
            continue
        name, _, value = text.partition(":")
        if name in fields:
            fields[name] = value.removeprefix(" ")


def _line(row: dict[str, Any], *, colours: bool) -> str:
    """A row for people."""

    def paint(text: str, code: str) -> str:
        text = printable(text)
        return f"\x1b[{code}m{text}\x1b[0m" if colours and text else text

    state = row["state"]
    status = str(row["status"]) if row["status"] else "---"
    if row["code"] and row["code"] != status:
        status += f"·{row['code']}"
    shown = [
        paint(row["at"][11:23], "2"),
        paint(f"{_SIGNS[state]} {status:<8}", _COLOURS[state]),
        printable(f"{row['method']:<6}"),
        printable(row["path"] or row["route"]),
    ]
    if row["kind"] == "money":
        shown.append(paint("money", "35"))
    if row["attempts"] > 1:
        shown.append(f"×{row['attempts']}")
    if row["outcome"] != "answered":
        shown.append(paint(row["outcome"], _COLOURS["unknown" if state == "unknown" else "failed"]))
    shown += [printable(one) for one in (row["error"], row["reference"]) if one]
    shown.append(paint(f"{row['seconds'] * 1000:.1f} ms  {row['caller']}", "2"))
    if state == "failed" and row["description"]:
        shown.append(printable(row["description"]))
    return "  ".join(shown)
