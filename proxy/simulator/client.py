"""A small client of the control API, for tests that run a simulator in another process.

    nomba = Control("http://127.0.0.1:8091")
    nomba.fault("lose-reply", path="/v2/transfers/*")
    ...
    assert len(nomba.ledger()["movements"]) == 1

It blocks, so a test with an event loop calls it in a thread.
"""

import base64
import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit


class ControlError(Exception):
    """The simulator said no; the text is its reason."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that the simulator received.

    Attributes:
        number: its place among all requests, counted from 1.
        connection: number of the connection it came on.
        method, target: as sent.
        head: the bytes from the request line to the blank line.
        body: its bytes, chunk framing removed.
        whole: whether it arrived completely.
        status: HTTP status of its answer; None without one.
    """

    number: int
    connection: int
    method: str
    target: str
    head: bytes
    body: bytes
    whole: bool
    status: int | None


class Control:
    """Controls a simulator.

    Args:
        origin: where its control API listens, as its banner says.
        timeout: seconds to wait for an answer.

    Every method raises ControlError if the simulator says no, and OSError if there is none.
    """

    def __init__(self, origin: str = "http://127.0.0.1:8091", *, timeout: float = 10.0) -> None:
        self._netloc = urlsplit(origin).netloc
        self._timeout = timeout

    def switches(self, **changes: Any) -> dict[str, Any]:
        """Change switches, if any are given; all of them as they are then."""
        method = "PATCH" if changes else "GET"
        switches: dict[str, Any] = self._call(method, "/switches", changes or None)
        return switches

    def fault(self, name: str, **options: Any) -> None:
        """Ask for a fault."""
        self._call("POST", "/faults", {"fault": name, **options})

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are still due."""
        faults: list[dict[str, Any]] = self._call("GET", "/faults")
        return faults

    def clear_faults(self) -> None:
        """Forget the faults."""
        self._call("DELETE", "/faults")

    def expire(self) -> None:
        """Every token expires now."""
        self._call("POST", "/expire")

    def revoke(self) -> None:
        """Every token is revoked now."""
        self._call("POST", "/revoke")

    def reset(self) -> None:
        """Back to the first day; the switches stay."""
        self._call("POST", "/reset")

    def pay(self, **what: Any) -> dict[str, Any]:
        """A customer pays: `orderReference`, or `accountNumber` and `amount`."""
        paid: dict[str, Any] = self._call("POST", "/pay", what)
        return paid

    def received(self, path: str | None = None, *, after: int = 0) -> list[Seen]:
        """The requests received, oldest first.

        Args:
            path: only those for this path, without query.
            after: only those with a higher number.
        """
        query = {"after": after, **({} if path is None else {"path": path})}
        return [
            Seen(
                number=one["number"],
                connection=one["connection"],
                method=one["method"],
                target=one["target"],
                head=one["head"].encode("latin-1"),
                body=one["body"].encode()
                if "body" in one
                else base64.b64decode(one["body_base64"]),
                whole=one["whole"],
                status=one["status"],
            )
            for one in self._call("GET", f"/received?{urlencode(query)}")
        ]

    def forget_received(self) -> None:
        """Forget the requests received."""
        self._call("DELETE", "/received")

    def ledger(self) -> dict[str, Any]:
        """`balances` by account and every one of the `movements` of money."""
        ledger: dict[str, Any] = self._call("GET", "/ledger")
        return ledger

    def _call(self, method: str, target: str, content: object = None) -> Any:
        connection = http.client.HTTPConnection(self._netloc, timeout=self._timeout)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, target, body=body)
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"no simulator answers on {self._netloc}: {error!r}") from error
        finally:
            connection.close()
        if reply.status != 200:
            raise ControlError(str(answer.get("description", answer)))
        return answer
