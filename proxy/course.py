"""What one exchange carries from step to step."""

from proxy.body import Body
from proxy.calls import Call
from proxy.core.capture import Capture, Dialled
from proxy.core.exchange import Exchange
from proxy.core.heads import RequestHead
from proxy.core.limits import Limiter
from proxy.core.routes import READ_METHODS
from proxy.core.session import Token
from proxy.errors import Outcome
from proxy.gate import Decision, Upstream
from proxy.upstream.reply import Reply

_UNKNOWN = Outcome.UNKNOWN  # Python 3.11 looks a member up by its name every time


class Course:
    """One exchange on its way through the steps.

    Args:
        call: the caller's request.
        exchange: the record of it.
        capture: is told; None if nobody watches.

    Attributes:
        connection: the caller's.
        limiter: has let it in, and is told when it ends.
        decision: how it is forwarded.
        upstream: where to.
        head: to be sent.
        body: in parts; can be gone through more than once; None for none.
        deadline: loop time at which it has to be over, whatever is sent in it.
        resent: whether the one resend over a fresh connection has been had.
        token: the one of the last attempt, which must not come back in its reply.
        reply: to the last attempt; `open` as long as it has to be closed.
        hint: for the caller, if the outcome needs one.
    """

    __slots__ = (
        *("body", "call", "capture", "connection", "deadline", "decision", "exchange"),
        *("head", "hint", "limiter", "open", "reply", "resent", "token", "upstream"),
    )
    decision: Decision
    upstream: Upstream
    head: RequestHead
    deadline: float
    token: Token
    reply: Reply

    def __init__(self, call: Call, exchange: Exchange, capture: Capture | None) -> None:
        self.call = call
        self.exchange = exchange
        self.capture = capture
        self.connection = call.connection
        self.limiter: Limiter | None = None
        self.body: Body | None = None
        self.open: Reply | None = None
        self.resent = False
        self.hint = ""

    def go(self, decision: Decision) -> None:
        """It is to be forwarded."""
        self.decision = decision
        self.upstream = decision.upstream
        self.head = decision.head

    def free(self) -> None:
        """Let go of the body, if there is one; nothing is sent any more."""
        if self.body is not None:
            self.body.close()
            self.body = None

    def sending(self, dialled: Dialled | None) -> None:
        """From the first byte on nobody knows, until it is answered."""
        self.exchange.outcome = _UNKNOWN
        if self.capture is not None:
            self.capture.sending(dialled)
        if self.exchange.method not in READ_METHODS:
            self.connection.heeds = False

    def drop(self) -> None:
        """Let go of a reply that another one takes the place of."""
        if self.capture is not None:
            self.capture.part(self.reply.ready() or b"")
        self.reply.close()
