"""Events and exchanges become one canonical log line each, and metrics.

What is logged is an allowlist: the fields of `Exchange` and `Event`, which hold no
bodies, query strings or header values.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any, BinaryIO, TextIO

import orjson
import structlog

from proxy.core.exchange import Event, Exchange
from proxy.core.judge import is_success
from proxy.core.printable import printable
from proxy.errors import Outcome
from proxy.metrics import Metrics, Shared

_ATOMIC = 4096  # bytes that a pipe takes whole, whoever else writes to it (PIPE_BUF, pipe(7))
# Python 3.11 looks a member up by its name every time.
_UNKNOWN, _ANSWERED = Outcome.UNKNOWN, Outcome.ANSWERED
_ORDINARY = frozenset({"read", "write"})
_LEVELS = ("info", "warning", "error")  # that exchanges have
_TROUBLE = frozenset({500, 502, 503, 504})  # statuses that are a warning


class Telemetry:
    """What watches the proxy: the log on `stream`, and the metrics.

    Args:
        log_format: `json`, `console`, or `auto` (console on a terminal).
        level: the least level that is written.
        version: for `build_info`.
        sample: share of the ordinary exchanges that are written; all of them are counted.
        stream: a text stream; its bytes are written to directly for JSON.
        shared: if the metrics are to be added to those of other processes.
    """

    def __init__(
        self,
        log_format: str,
        *,
        level: str,
        version: str,
        sample: float = 1.0,
        stream: TextIO | None = None,
        shared: Shared | None = None,
    ) -> None:
        stream = stream or sys.stdout
        console = log_format == "console" or (log_format == "auto" and stream.isatty())
        self.metrics = Metrics(version=version, shared=shared)
        self._console = console
        self._stream = stream
        self._over: list[Exchange] = []  # not accounted for yet
        self._lines = _Lines(stream.buffer)
        self.set_level(level, sample=sample)

    def set_level(self, level: str, *, sample: float = 1.0) -> None:
        """What is of a lesser level is not written, nor more than a share of what is ordinary."""
        self._sample = sample
        weight = logging.getLevelNamesMapping()
        least = weight[level.upper()]
        self._levels = {one for one in _LEVELS if weight[one.upper()] >= least}
        lines = None if self._console else self._lines
        self._log = _logger(self._stream, lines=lines, level=level)

    def observe(self, exchange: Exchange) -> None:
        """Write the one canonical line of an exchange and count it, soon."""
        self._over.append(exchange)
        if len(self._over) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self._account)
        except RuntimeError:  # there is none
            self._account()

    def _account(self) -> None:
        """Account for all exchanges that ended in one turn of the event loop."""
        if not self._over:
            return
        over, self._over = self._over, []
        for exchange in over:
            self.metrics.observe(exchange)
        if self._sample < 1:
            over = [one for one in over if not _is_ordinary(one) or self._takes(one)]
        if self._console:
            for exchange in over:
                self._write(getattr(self._log, _level(exchange)), *_for_people(exchange))
            return
        lines, timestamp = [], self._lines.timestamp()
        for exchange in over:
            level = _level(exchange)
            if level in self._levels:
                line = _canonical(exchange)
                line["event"], line["level"], line["timestamp"] = "exchange", level, timestamp
                if self._sample < 1 and _is_ordinary(exchange):
                    line["sample"] = self._sample
                lines.append(_dumps(line))
        self._lines.write(lines)

    def _takes(self, exchange: Exchange) -> bool:
        """Whether an ordinary exchange is written: every replica says the same of the same id."""
        return zlib.crc32(exchange.request_id.encode()) < self._sample * 0x1_0000_0000

    def emit(self, event: Event) -> None:
        """Write an event and count it."""
        self._account()  # what was over before it stands before it
        self.metrics.emit(event)
        line = event.fields | {"upstream": event.upstream or "-"}
        self._write(getattr(self._log, event.level), event.name, line)

    @staticmethod
    def _write(log: Callable[..., object], name: str, line: dict[str, Any]) -> None:
        # A reader of our log that went away must not break an exchange.
        with contextlib.suppress(OSError, ValueError):
            log(name, **line)


class _Lines:
    """Writes lines of JSON.

    Args:
        stream: gets whole lines only, in pieces that a pipe does not take apart.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._second, self._until_seconds = 0, ""

    def timestamp(self) -> str:
        """Now, as structlog's `TimeStamper(fmt="iso")` writes it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._until_seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._until_seconds}.{int((now - second) * 1e6):06d}Z"

    def write(self, lines: list[bytes]) -> None:
        """Write lines, given without their ends."""
        together = b""
        for line in lines:
            if together and len(together) + len(line) >= _ATOMIC:
                self._put(together)
                together = b""
            together += line + b"\n"
        if together:
            self._put(together)

    def msg(self, line: bytes) -> None:
        """structlog: write one line."""
        self._put(line + b"\n")

    debug = info = warning = error = msg

    def _put(self, data: bytes) -> None:
        # A reader of our log that went away must not break an exchange.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(data)
            self._stream.flush()


def _level(exchange: Exchange) -> str:
    """Whether somebody has to act on it, should look some time, or need not."""
    if exchange.outcome is _UNKNOWN:  # what it did has to be found out, unless it only asked
        return "warning" if exchange.kind == "read" else "error"
    return "warning" if exchange.status in _TROUBLE else "info"


def _is_ordinary(exchange: Exchange) -> bool:
    """Whether nobody will ask for it: a read or write that went as it should, at the first try."""
    return (
        exchange.kind in _ORDINARY
        and exchange.outcome is _ANSWERED
        and is_success(exchange.status, envelope=exchange.envelope)
        and exchange.attempts == 1
        and not exchange.error
        and not exchange.account_replaced
    )


def _canonical(exchange: Exchange) -> dict[str, Any]:
    """An exchange as it is logged."""
    line: dict[str, Any] = {
        "request_id": exchange.request_id,
        "caller": exchange.caller,
        "upstream": exchange.upstream,
        "method": exchange.method,
        "route": exchange.route,
        "kind": exchange.kind,
        "status": exchange.status,
        "attempts": exchange.attempts,
        "outcome": exchange.outcome,
        "generation": exchange.generation,
        "body_bytes": exchange.body_bytes,
        "reply_bytes": exchange.reply_bytes,
        "token_wait_seconds": int(exchange.waited * 1e6) / 1e6,
        "upstream_seconds": int(exchange.upstream_seconds * 1e6) / 1e6,
        "duration_seconds": int(exchange.seconds * 1e6) / 1e6,
    }
    if exchange.envelope:
        line["envelope"] = exchange.envelope
    if exchange.trace:
        line["trace_id"] = exchange.trace
    if exchange.account_replaced:
        line["account_replaced"] = True
    if exchange.error:
        line["error"] = exchange.error
    if exchange.detail:
        line["detail"] = exchange.detail
    if exchange.reference:
        line["reference"] = exchange.reference
    return line


def _for_people(exchange: Exchange) -> tuple[str, dict[str, Any]]:
    """An exchange as a short sentence, and only what is unusual about it."""
    sentence = (
        f"{exchange.method} {exchange.route} {exchange.status} {exchange.outcome} "
        f"in {exchange.seconds * 1000:.1f} ms"
    )
    unusual: dict[str, Any] = {"upstream": exchange.upstream, "request_id": exchange.request_id}
    if exchange.kind == "money":
        unusual["kind"] = "money"
    if exchange.attempts > 1:
        unusual["attempts"] = exchange.attempts
    if exchange.account_replaced:
        unusual["account_replaced"] = True
    if exchange.error:
        unusual["error"] = exchange.error
    if exchange.detail:
        unusual["detail"] = exchange.detail
    if exchange.reference:
        unusual["reference"] = exchange.reference
    return sentence, unusual


def _logger(stream: TextIO, *, lines: _Lines | None, level: str) -> Any:
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if lines is None else "iso", utc=lines is not None
        ),
    ]
    if lines is None:
        processors.append(_for_terminals)
        processors.append(
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=56, sort_keys=False)
        )
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_dumps))
    return structlog.wrap_logger(
        structlog.PrintLogger(stream) if lines is None else lines,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )


def _for_terminals(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Nothing that others wrote acts on a terminal; the renderer's own colours do.

    What is no text is rendered as its `repr`, which is printable.
    """
    for key, value in line.items():
        if isinstance(value, str):
            line[key] = printable(value)
    return line


def _dumps(line: object, **_: object) -> bytes:
    try:
        return orjson.dumps(line)
    except TypeError:  # half a surrogate pair, or a value of another kind: no line is lost for it
        return json.dumps(line, default=repr).encode()
