"""A load is only a measurement if every request was answered well."""

import os
import socketserver
import threading
import time
from contextlib import contextmanager

import paced
import pytest
from load import LoadFailed, read, wrk

CORES = tuple(os.sched_getaffinity(0))
SAID = (
    "RESULT requests=4500 microseconds=1500000 bytes=5000000"
    " connect=0 read=0 write=0 timeout=0 status=0 p50=6500 p90=7400 p99=11436 p99.9=22138"
)


def test_what_wrk_says_is_read():
    load = read(f"Running 2s test\n  some table\n{SAID}\n")
    assert (load.requests, load.seconds) == (4500, 1.5)
    assert (load.p50, load.p90, load.p99, load.p999) == (6.5, 7.4, 11.436, 22.138)


@pytest.mark.parametrize("kind", ["connect", "read", "write", "timeout", "status"])
def test_any_error_spoils_a_round(kind):
    with pytest.raises(LoadFailed, match=f"^7 {kind} errors$"):
        read(SAID.replace(f"{kind}=0", f"{kind}=7"))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("unable to connect to 127.0.0.1:1 Connection refused", "Connection refused"),
        ("", "nothing"),
        (SAID.replace("requests=4500", "requests=0"), "no request was answered"),
    ],
)
def test_no_answer_is_no_measurement(output, why):
    with pytest.raises(LoadFailed, match=why):
        read(output)


class Answers(socketserver.StreamRequestHandler):
    """One answer after another; `stall` holds all of them up once."""

    status, stall, at = 200, 0.0, 0
    _lock, _count = threading.Lock(), 0

    def handle(self):
        while self.rfile.readline():
            while self.rfile.readline() not in {b"\r\n", b""}:
                pass
            self.answer()

    def answer(self):
        with self._lock:
            type(self)._count += 1
            if self.stall and self._count == self.at:
                time.sleep(self.stall)
        self.wfile.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 2\r\n\r\nok".encode())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Callers leave as they like."""


@contextmanager
def answering(**options):
    handler = type("Handler", (Answers,), {"_lock": threading.Lock(), "_count": 0, **options})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_real_load_is_counted(with_wrk):
    with answering() as port:
        load = wrk(f"http://127.0.0.1:{port}/", cores=CORES, connections=2, seconds=1)
    assert load.requests > 2
    assert 0 < load.p50 <= load.p90 <= load.p99 <= load.p999


def test_real_refusals_spoil_a_round(with_wrk):
    with answering(status=503) as port, pytest.raises(LoadFailed, match=r"^\d+ status errors$"):
        wrk(f"http://127.0.0.1:{port}/", cores=CORES, connections=2, seconds=1)


def test_who_was_due_during_a_stall_has_waited_for_it():
    """A load that waits for its answers would have noticed one slow one a connection."""
    rate, stall = 400, 0.5
    with answering(stall=stall, at=50) as port:
        taken = paced.run(port, b"GET / HTTP/1.1\r\n\r\n", rate=rate, seconds=1)
    assert len(taken) == rate
    slow = [one for one in taken if one > stall / 5]
    assert len(slow) > 2 * paced.CONNECTIONS


def test_an_answer_that_is_no_success_spoils_the_latency():
    with answering(status=503) as port, pytest.raises(ValueError, match="503"):
        paced.run(port, b"GET / HTTP/1.1\r\n\r\n", rate=100, seconds=1)


def test_percentiles_are_values_that_were_measured():
    ordered = [float(one) for one in range(1, 1001)]
    shares = (0.5, 0.9, 0.99, 0.999)
    assert [paced.percentile(ordered, one) for one in shares] == [500, 900, 990, 999]
    assert paced.percentile([7.0], 0.999) == 7.0
