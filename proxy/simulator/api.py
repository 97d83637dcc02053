"""Which call a request is, whether it may, and what it gets: pure but for the state it moves."""

import contextlib
from collections.abc import Callable

from proxy.data import operations
from proxy.simulator.abroad import Abroad
from proxy.simulator.accounts import Accounts
from proxy.simulator.bills import Bills
from proxy.simulator.book import Book
from proxy.simulator.call import Call, Handler, Refused, Router, refused
from proxy.simulator.checkout import Checkout
from proxy.simulator.debits import Debits
from proxy.simulator.limits import Limits, too_many
from proxy.simulator.messages import Received, Reply, failure, reply_json
from proxy.simulator.payments import Payments
from proxy.simulator.sessions import Sessions, Standing
from proxy.simulator.switches import Switches
from proxy.simulator.terminals import Terminals
from proxy.simulator.times import jwt_expired
from proxy.simulator.transfers import Transfers

_AUTH = "/v1/auth/token"
_CALLS = ("issue", "refresh", "revoke")
_VARIANTS = (_AUTH, f"{_AUTH}/", f"{_AUTH}/issue/")  # of the issue call, as callers spell it (O)
# The operations that declare no accountId header (D): it may be left out there.
_HEADERLESS = frozenset(
    f"{op.method} {op.template}" for op in operations() if not op.declares_account
)
_MONEY = frozenset(f"{op.method} {op.template}" for op in operations() if op.money)


class Api:
    """Nomba's API.

    Args:
        switches: the behaviour wanted, read anew at each call.
        sessions: the auth state.
        book: the business state.
        limits: how much is taken.
    """

    def __init__(
        self, switches: Switches, *, sessions: Sessions, book: Book, limits: Limits
    ) -> None:
        self._switches = switches
        self._sessions = sessions
        self._book = book
        self._limits = limits
        payments = Payments(switches, book=book)
        self._accounts = Accounts(book, payments=payments)
        self._checkout = Checkout(switches, book=book, payments=payments)
        handlers: dict[str, Handler] = {
            **self._accounts.handlers(),
            **self._checkout.handlers(),
            **Transfers(payments=payments, limits=limits).handlers(),
            **Terminals(book, payments=payments).handlers(),
            **Bills(payments).handlers(),
            **Debits(book, payments=payments).handlers(),
            **Abroad(book, payments=payments).handlers(),
        }
        self._router = Router(handlers)

    def answer(self, request: Received) -> Reply:
        """Do what the request asks.

        A documented operation is refused before it is told to be wrong in its
        particulars; an undocumented path or method is 404 or 405 whoever asks.
        """
        within = self._limits.take()
        call = self._auth_call(request.path)
        if call is not None:
            if request.method != "POST":
                return failure(405, description="Method not allowed")
            return self._authenticate(call, request)
        if not within:
            return too_many()
        try:
            found = self._router.find(request.method, request.path)
            if found is None:
                return failure(404, description="Not found")
            route, params = found

            def work() -> Reply:
                return route.handler(Call(request, operation=route.operation, params=params))

            return self._refuse(request, operation=route.operation, work=work) or work()
        except Refused as error:
            return error.reply

    def pay(self, body: bytes) -> Reply:
        """A customer pays: the world outside, no operation of Nomba's.

        Args:
            body: JSON with the `orderReference` of an order, or with `accountNumber` and
                `amount` for a virtual account.
        """
        request = Received(method="", target=b"", raw_head=b"", headers=(), connection=0, body=body)
        try:
            call = Call(request, operation="payment", params={})
            if not {"orderReference", "accountNumber"} & set(call.form):
                raise refused(400, "Name an orderReference, or an accountNumber and an amount")
            moved = self._checkout.pay(call) or self._accounts.deposit(call)
        except Refused as error:
            return error.reply
        return reply_json(200, content={"id": moved["id"], "amount": moved["amount"]})

    # -- auth --------------------------------------------------------------------------

    def _auth_call(self, path: str) -> str | None:
        """Which of the auth calls a path is."""
        if not path.startswith(_AUTH):
            return None
        if self._switches.login_variants and path in _VARIANTS:
            return "issue"
        return next((name for name in _CALLS if path == f"{_AUTH}/{name}"), None)

    def _authenticate(self, call: str, request: Received) -> Reply:
        # Revoke: the guide shows accountId, the OpenAPI file declares no header (D).
        undeclared = call == "revoke" and not request.header("accountId")
        if not undeclared and not self._is_parent(request):
            return failure(401, description="Unauthorized")
        match call:
            case "issue":
                return self._sessions.issue(request.body)
            case "refresh":
                return self._sessions.refresh(request.body, bearer=request.bearer)
            case _:
                return self._sessions.revoke(request.body)

    def _is_parent(self, request: Received) -> bool:
        return request.header("accountId") == self._switches.account_id

    def _refuse(
        self, request: Received, *, operation: str, work: Callable[[], Reply]
    ) -> Reply | None:
        """The refusal a business call earns, or None."""
        unauthorized = failure(401, description="Unauthorized")
        account = request.header("accountId")
        is_sub = account in self._book.table("accounts")
        known = is_sub or account == self._switches.account_id
        if operation in _HEADERLESS and not request.has("accountId"):
            known = True
        if request.bearer is None or not known:
            return unauthorized
        standing = self._sessions.standing(request.bearer)
        if standing.state == "living":  # a sub-account does not belong into the header (O)
            return failure(403, description="Forbidden") if is_sub else None
        if self._switches.debit_before_auth_error and operation in _MONEY and not is_sub:
            with contextlib.suppress(Refused):
                work()
            return self._expired(standing)
        return self._expired(standing) if standing.state == "expired" else unauthorized

    def _expired(self, standing: Standing) -> Reply:
        match self._switches.expired_as:
            case "401":
                return failure(401, description="Unauthorized")
            case "500":
                detail = f"Internal Server Error: INTERNAL: {jwt_expired(standing.expired_at)}"
                return reply_json(500, content={"detail": detail})
            case "200":
                return reply_json(200, content={"code": "02", "description": "Token expired"})
