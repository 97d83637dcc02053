"""The simulator that a soak runs against: what has come to it, and when it answers token calls."""

import json
import time
from collections import Counter
from pathlib import Path

from proxy.simulator import Switches, parse_fault
from proxy.simulator.messages import Received, Reply
from proxy.simulator.simulator import Simulator

ISSUE, REFRESH, TRANSFER = "/v1/auth/token/issue", "/v1/auth/token/refresh", "/v2/transfers/bank"
# Between a token call and its answer nobody has a living token; what happens, happens then too.
_TOKEN_CALLS = "delay path=/v1/auth/token/* seconds=0.2 work=true times=always"
_STORING = 0.3  # seconds from the answer of a token call until the proxy has surely stored it
_LATEST = 500  # requests among which one that is not answered yet is looked for


class Nomba:
    """A simulator under the single-session rule.

    Args:
        lifetime: seconds that a token lives.

    Attributes:
        sent: how often each transfer came, but for those whose token was refused.
        granted: tokens that were granted, to whomever, by the call's path.
    """

    def __init__(self, lifetime: float) -> None:
        # With the whole seconds of a reply's times a token would seem to live a second shorter now
        # and then: its JWT tells better.
        self.switches = Switches(
            rate_limit=0, recipient_limit=0, lifetime=lifetime, expires_at_form="absent"
        )
        self.simulator = Simulator(self.switches, memory=4_000_000, observe=self._note)
        self.simulator.inject(parse_fault(_TOKEN_CALLS))
        self.sent: Counter[str] = Counter()
        self.granted: Counter[str] = Counter()
        self._granted_at = 0.0

    def _note(self, request: Received, reply: Reply | None) -> None:
        if request.path == TRANSFER and request.whole and (not reply or reply.status != 401):
            self.sent[json.loads(request.body)["merchantTxRef"]] += 1
        elif request.path in {ISSUE, REFRESH} and reply and reply.status == 200:
            self.granted[request.path] += 1
            self._granted_at = time.monotonic()

    @property
    def asked(self) -> bool:
        """Whether a token call waits for its answer."""
        return any(
            one.path in {ISSUE, REFRESH} and one.whole and one.status is None
            for one in self.simulator.received[-_LATEST:]
        )

    @property
    def renewing(self) -> bool:
        """Whether a token call is under way, or its answer is perhaps not stored yet."""
        return self.asked or time.monotonic() - self._granted_at < _STORING

    @property
    def moved(self) -> Counter[str]:
        """Of each reference, how often the ledger has it."""
        return Counter(one.ref for one in self.simulator.ledger)


class ClientSecret:
    """What the proxy logs in with, in a file, and what Nomba takes."""

    def __init__(self, path: Path, switches: Switches) -> None:
        self.path, self._switches, self._number = path, switches, 0
        path.write_text(switches.client_secret)

    def change(self) -> None:
        """Nomba takes another one; for the time being also the one of before."""
        self._number += 1
        old, new = self._switches.client_secret, f"a-client-secret-{self._number}"
        self._switches.client_secret = new
        self._switches.other_clients = (f"{self._switches.client_id}:{old}",)
        self.path.write_text(new)

    def forget(self) -> None:
        """The one of before is taken no more."""
        self._switches.other_clients = ()
