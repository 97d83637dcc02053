"""TLS handshakes that fail, told to both ends.

asyncio ends such a connection without sending the alert that says why, and without a word in the
log: whoever forgot a certificate would see an empty reply.
"""

import ssl
import time
import weakref
from collections import deque

from proxy.core.exchange import Emit, Event

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError)
_UNTRUSTED = (
    "the caller does not trust the proxy's certificate",
    "It has to trust the CA (docs/hard-coded-hosts.md), and tls.cert_file has to hold the chain.",
)
_WHY = {  # what OpenSSL calls it: what it means, and what to do
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "the caller showed no certificate",
        "Give it one that tls.client_ca_file signed, or set tls.client_required = false.",
    ),
    "HTTP_REQUEST": ("the caller spoke plain HTTP", "Call this listener with https://."),
    "TLSV1_ALERT_UNKNOWN_CA": _UNTRUSTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _UNTRUSTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _UNTRUSTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        "the caller says that the proxy's certificate has expired",
        "Renew tls.cert_file, or set the clocks.",
    ),
}
_CHECKED = "It is checked with tls.client_ca_file; intermediate ones belong into the caller's file."


class Begun:
    """Handshakes that have not ended, as far as is known.

    asyncio leaves one that has come to nothing to the garbage collector, which may be long in
    coming. So none counts for longer than it may take.

    Args:
        patience: seconds that it may take.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._under_way: weakref.WeakSet[ssl.SSLObject] = weakref.WeakSet()
        self._since: deque[tuple[float, weakref.ref[ssl.SSLObject]]] = deque()  # the oldest first

    def add(self, one: ssl.SSLObject) -> None:
        """It begins."""
        self._under_way.add(one)
        self._since.append((time.monotonic(), weakref.ref(one)))

    def discard(self, one: ssl.SSLObject) -> None:
        """It has ended."""
        self._under_way.discard(one)

    def __len__(self) -> int:
        over = time.monotonic() - self._patience
        while self._since:
            since, known = self._since[0]
            if (one := known()) is not None:
                if since >= over and one in self._under_way:
                    break
                self._under_way.discard(one)
            self._since.popleft()
        return len(self._under_way)


class Handshake(ssl.SSLObject):
    """A TLS connection. One that does not come about is logged, and its alert is sent.

    Attributes:
        refused: whether it is not to come about, without a word.
    """

    _emit: Emit
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO
    _begun: Begun
    _failed = False
    refused = False

    def between(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        *,
        emit: Emit,
        begun: Begun,
    ) -> None:
        """What it reads from and writes to, who takes events, and whom it belongs to until its end."""
        self._incoming, self._outgoing = incoming, outgoing
        self._emit, self._begun = emit, begun
        begun.add(self)

    def do_handshake(self) -> None:
        """asyncio: something has come.

        Raises:
            ssl.SSLWantReadError: more has to come; or it has failed and the alert has to go, so
                the end is left to the caller, or to the time that a handshake may take.
            ssl.SSLError: it has failed, and there is nothing to send.
        """
        if self.refused:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "there are too many handshakes")
        if self._failed:
            self._incoming.read()  # nobody needs it any more
            raise _waiting()
        try:
            super().do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLError as error:
            self._emit(Event("handshake_failed", fields=_told(error)))
            if not self._outgoing.pending:
                self._begun.discard(self)
                raise
            self._failed = True
            raise _waiting() from None
        self._begun.discard(self)


def _waiting() -> ssl.SSLWantReadError:
    return ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "an alert is sent")


def _told(error: ssl.SSLError) -> dict[str, object]:
    """Why it failed, in words of ours or OpenSSL's; nothing of what was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return {"reason": f"the caller's certificate: {error.verify_message}", "hint": _CHECKED}
    reason, hint = _WHY.get(error.reason, (error.reason or "no TLS", ""))
    return {"reason": reason, "hint": hint} if hint else {"reason": reason}
