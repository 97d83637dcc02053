"""Ask at a constant rate, whatever comes back, and say how long each answer took.

    python bench/paced.py '{"port": 8080, "path": "/", "headers": [], "rate": 1000, "seconds": 5}'

The load is open: a request is due when its moment has come, and its latency counts from then, also if
every connection is busy with an earlier one. So a proxy that stalls is charged with all that would
have been asked meanwhile (no "coordinated omission"). It is plain select(2), whose timeout has
microseconds: event loops wait for whole milliseconds.
"""

import gc
import json
import math
import select
import socket
import sys
import time
from collections import deque
from contextlib import ExitStack

CONNECTIONS = 32
MARKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
_GRACE = 10.0  # seconds in which the last answers have to come


class Connection:
    """One request at a time."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.due = 0.0
        self._got, self._expected = 0, 0

    def fileno(self) -> int:
        """For select."""
        return self.sock.fileno()

    def ask(self, request: bytes, *, due: float) -> None:
        """Send it; it was due then."""
        self.due, self._got, self._expected = due, 0, 0
        self.sock.sendall(request)

    def read(self) -> bool:
        """Whether the answer is complete.

        Raises:
            ValueError: it is none, or no success.
        """
        data = self.sock.recv(262144)
        if not self._got:
            head, end, _ = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            if not data.startswith(b"HTTP/1.1 200 ") or not end or not length:
                raise ValueError(f"answered with {data[:120]!r}")
            self._expected = len(head) + 4 + int(length)
        self._got += len(data)
        return self._got >= self._expected


def percentile(ordered: list[float], share: float) -> float:
    """The least value that so large a share of the values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run(port: int, request: bytes, *, rate: float, seconds: float) -> list[float]:
    """The latency of every answer, in seconds.

    Raises:
        ValueError: something else than a success came, or nothing.
        OSError: a connection failed.
    """
    with ExitStack() as stack:
        connections = [Connection(port) for _ in range(CONNECTIONS)]
        for one in connections:
            stack.enter_context(one.sock)
        return _paced(connections, request, rate=rate, seconds=seconds)


def _paced(idle: list[Connection], request: bytes, *, rate: float, seconds: float) -> list[float]:
    busy: dict[int, Connection] = {}
    waiting: deque[float] = deque()
    taken: list[float] = []
    clock = time.perf_counter
    begin = clock() + 0.1
    count, scheduled = int(rate * seconds), 0
    end = begin + seconds + _GRACE
    while len(taken) < count:
        now = clock()
        if now > end:
            raise ValueError(f"{count - len(taken)} of {count} requests are not answered")
        while scheduled < count and begin + scheduled / rate <= now:
            waiting.append(begin + scheduled / rate)
            scheduled += 1
        while waiting and idle:
            connection = idle.pop()
            connection.ask(request, due=waiting.popleft())
            busy[connection.fileno()] = connection
        pause = begin + scheduled / rate - clock() if scheduled < count else 1.0
        if not busy:
            time.sleep(max(0.0, pause))
            continue
        readable, _, _ = select.select(busy, (), (), max(0.0, pause))
        for number in readable:
            connection = busy[number]
            if connection.read():
                taken.append(clock() - connection.due)
                del busy[number]
                idle.append(connection)
    return taken


def main() -> None:
    """Print the percentiles in milliseconds, as JSON."""
    asked = json.loads(sys.argv[1])
    lines = [f"GET {asked['path']} HTTP/1.1", f"Host: 127.0.0.1:{asked['port']}"]
    request = "\r\n".join([*lines, *asked["headers"], "", ""]).encode()
    gc.disable()  # its pauses would count as the proxy's
    try:
        taken = run(asked["port"], request, rate=asked["rate"], seconds=asked["seconds"])
    except (OSError, ValueError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return
    taken.sort()
    shown = {name: percentile(taken, share) * 1e3 for name, share in MARKS.items()}
    print(json.dumps({"requests": len(taken), **shown}))


if __name__ == "__main__":
    main()
