"""What is written of exchanges and events, and in what pieces."""

import asyncio
import io
import json
import os

import pytest
from harness import Log

from proxy.core.exchange import Event, Exchange
from proxy.core.ids import new_request_id
from proxy.errors import Outcome
from proxy.telemetry import Telemetry


class Pieces(io.RawIOBase):
    """A stream that remembers what each write holds."""

    def __init__(self):
        self.written = []

    def writable(self):
        return True

    def write(self, data):
        self.written.append(bytes(data))
        return len(data)


def over(number, **fields):
    """An exchange that is over."""
    exchange = Exchange(f"id-{number}", 0.0, "GET", caller="app", upstream="nomba", status=200)
    exchange.outcome = Outcome.ANSWERED
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


async def test_lines_of_one_turn_are_written_in_whole_lines_that_a_pipe_does_not_take_apart():
    pieces = Pieces()
    stream = io.TextIOWrapper(io.BufferedWriter(pieces, 1 << 16))
    telemetry = Telemetry("json", level="info", version="x", stream=stream)
    for number in range(100):
        telemetry.observe(over(number, detail="d" * (number * 37 % 700)))
    assert pieces.written == []
    await asyncio.sleep(0)
    assert 1 < len(pieces.written) < 40
    assert all(len(one) <= 4096 and one.endswith(b"\n") for one in pieces.written)
    lines = [json.loads(line) for line in b"".join(pieces.written).splitlines()]
    assert [line["request_id"] for line in lines] == [f"id-{number}" for number in range(100)]


EVIL = "\x1b]0;x\x07\x1b[2J\r\nFORGED\x7f\x9b31m\u202e\u2066"


@pytest.mark.parametrize("spaced", ["", " and more"])
async def test_nothing_that_others_send_speaks_to_the_terminal(spaced):
    """Values with a space in them are quoted by the renderer, and others are not."""
    log = Log()
    telemetry = Telemetry("console", level="info", version="x", stream=log)
    named = ("method", "route", "upstream", "request_id", "error", "detail", "reference")
    for name in named:
        telemetry.observe(over(1, **{name: EVIL + spaced}))
    evil = EVIL + spaced
    telemetry.emit(
        Event("met", "warning", evil, {"reason": evil, "names": [evil], "by": {evil: evil}})
    )
    await asyncio.sleep(0)
    lines = log.text.split("\n")
    assert len(lines) == len(named) + 2  # one is empty, behind the last newline
    assert not [one for line in lines for one in line if not one.isprintable()]
    assert all("u001b]0;x" in line for line in lines[: len(named)])


async def test_json_has_what_was_sent():
    log = Log()
    telemetry = Telemetry("json", level="info", version="x", stream=log)
    telemetry.observe(over(1, reference=EVIL))
    telemetry.emit(Event("met", fields={"reason": EVIL}))
    await asyncio.sleep(0)
    exchange, event = log.lines()
    assert (exchange["reference"], event["reason"]) == (EVIL, EVIL)


async def test_a_value_that_is_no_json_takes_no_line_with_it():
    log = Log()
    telemetry = Telemetry("json", level="info", version="x", stream=log)
    telemetry.observe(over(1))
    telemetry.observe(over(2, detail="half a pair: \udc80", reference=b"bytes"))
    telemetry.observe(over(3))
    telemetry.emit(Event("draining", fields={"reason": "\udc80", "what": {1, 2}}))
    lines = log.lines()
    assert [line["request_id"] for line in lines[:3]] == ["id-1", "id-2", "id-3"]
    assert lines[1]["detail"] == "half a pair: \udc80"
    assert (lines[3]["event"], lines[3]["what"]) == ("draining", "{1, 2}")


async def test_an_event_stands_behind_what_was_over_before_it():
    log = Log()
    telemetry = Telemetry("json", level="info", version="x", stream=log)
    telemetry.observe(over(1))
    telemetry.emit(Event("something"))
    telemetry.observe(over(2))
    await asyncio.sleep(0)
    assert [line["event"] for line in log.lines()] == ["exchange", "something", "exchange"]


def test_without_a_loop_a_line_is_written_at_once():
    log = Log()
    Telemetry("json", level="info", version="x", stream=log).observe(over(1))
    assert len(log.lines("exchange")) == 1


@pytest.mark.parametrize(
    ("level", "expected"),
    [("debug", [200, 503]), ("info", [200, 503]), ("warning", [503]), ("error", [])],
)
def test_the_level_decides_which_lines_are_written(level, expected):
    log = Log()
    telemetry = Telemetry("json", level=level, version="x", stream=log)
    for status in (200, 503):
        telemetry.observe(over(status, status=status))
    assert [line["status"] for line in log.lines("exchange")] == expected
    counted = telemetry.metrics.render().decode()
    assert 'code_class="2xx",method="GET",route="other",upstream="nomba"} 1.0' in counted


async def test_a_reader_that_has_gone_breaks_nothing():
    class Gone(Pieces):
        def write(self, data):
            raise BrokenPipeError

    telemetry = Telemetry("json", level="info", version="x", stream=io.TextIOWrapper(Gone()))
    telemetry.observe(over(1))
    await asyncio.sleep(0)
    telemetry.emit(Event("something"))
    assert "requests_total{" in telemetry.metrics.render().decode()


def test_a_fork_makes_other_ids():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_request_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    assert len(theirs) == 32
    assert theirs != new_request_id()
