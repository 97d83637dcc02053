"""What becomes of a reply: judged, or made by us; and the line and the metrics of every exchange."""

import os
from pathlib import Path

import orjson
import pytest

from proxy.core.exchange import Exchange
from proxy.core.judge import Verdict, judge
from proxy.core.refusal import local_reply, refusal_parts
from proxy.errors import CallerUnknown, Outcome
from proxy.telemetry import Telemetry

BODIES = {
    "1 KiB": (orjson.dumps({"code": "00", "data": "x" * 1000}), Verdict.ANSWER),
    "16 KiB, code last": (orjson.dumps({"data": ["x" * 8] * 1400, "code": "00"}), Verdict.ANSWER),
    "refusal": (
        b'{"code":"02","description":"Token has expired, please re-authenticate"}',
        Verdict.REFUSAL_UNPROVEN,
    ),
}


@pytest.mark.parametrize("form", BODIES)
def test_judge(benchmark, form):
    body, verdict = BODIES[form]
    assert benchmark(judge, 200, coding=b"", body=body, complete=True)[0] is verdict


def test_refusal(benchmark):
    def refuse():
        error = CallerUnknown("The key is not one of a caller's.", hint="Send another.")
        body, extra = refusal_parts(error, request_id="0" * 32)
        return local_reply(
            error.status,
            body=body,
            request_id="0" * 32,
            outcome=error.outcome,
            date="Thu, 01 Jan 2026 00:00:00 GMT",
            keep_alive=True,
            http10=False,
            extra=extra,
        )

    assert benchmark(refuse).startswith(b"HTTP/1.1 401 ")


def test_observe(benchmark):
    """The canonical log line and the metrics, without what a disk would cost."""
    exchange = Exchange(
        "0123456789abcdef0123456789abcdef",
        started=1.0,
        method="GET",
        caller="bench",
        upstream="nomba",
        route="/v1/accounts/balance",
        kind="read",
        status=200,
        outcome=Outcome.ANSWERED,
        attempts=1,
        generation=1,
        reply_bytes=1024,
        upstream_seconds=0.0123456,
        seconds=0.0134567,
    )
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        telemetry = Telemetry("json", level="info", version="bench", stream=nowhere)
        benchmark(telemetry.observe, exchange)
    assert b'caller="bench"' in telemetry.metrics.render()
