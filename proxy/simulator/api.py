"""Which call a request is, whether it may, and what it gets: pure but for the state it moves."""

from proxy.data import operations
from proxy.simulator.bank import Bank
from proxy.simulator.messages import Received, Reply, failure, reply_json
from proxy.simulator.sessions import Sessions, Standing, jwt_expired
from proxy.simulator.switches import Switches

_AUTH = "/v1/auth/token/"
_TRANSFER_CODES = {"/v2/transfers/bank": "200", "/v1/transfers/bank": "00"}


class Api:
    """Nomba's API as far as the simulator has it.

    Args:
        switches: the behaviour wanted, read anew at each call.
        sessions: the auth state.
        bank: the business state.
    """

    def __init__(self, switches: Switches, *, sessions: Sessions, bank: Bank) -> None:
        self._switches = switches
        self._sessions = sessions
        self._bank = bank

    def answer(self, request: Received) -> Reply:
        """Do what the request asks.

        A documented operation is refused before it is told to be missing here;
        an undocumented path or method is 404 or 405 whoever asks.
        """
        methods = {op.method for op in operations() if _matches(op.template, path=request.path)}
        if not methods:
            return failure(404, description="Not found")
        if request.method not in methods:
            return failure(405, description="Method not allowed")
        if request.path.startswith(_AUTH):
            return self._authenticate(request)
        return self._refuse(request) or self._work(request)

    def _authenticate(self, request: Received) -> Reply:
        call = request.path.removeprefix(_AUTH)
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

    def _refuse(self, request: Received) -> Reply | None:
        """The refusal a business call earns, or None."""
        unauthorized = failure(401, description="Unauthorized")
        if not self._is_parent(request) or request.bearer is None:
            return unauthorized
        standing = self._sessions.standing(request.bearer)
        if standing.state == "living":
            return None
        if self._switches.debit_before_auth_error and _is_transfer(request):
            self._work(request)
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

    def _work(self, request: Received) -> Reply:
        bank = self._bank
        match request.method, request.path:
            case "GET", "/v1/accounts/balance":
                return bank.show_balance()
            case "GET", "/v1/accounts/parent":
                return bank.show_parent(self._switches.account_id)
            case "GET", "/v1/transfers/banks":
                return bank.list_banks()
            case "POST", "/v1/transfers/bank/lookup":
                return bank.look_up(request.body)
            case "POST", ("/v2/transfers/bank" | "/v1/transfers/bank") as path:
                return bank.transfer(request.body, code=_TRANSFER_CODES[path])
            case "GET", "/v1/transactions/accounts/single":
                return bank.requery(request.query)
            case _:
                return failure(404, description="Not found")


def _is_transfer(request: Received) -> bool:
    return request.method == "POST" and request.path in _TRANSFER_CODES


def _matches(template: str, *, path: str) -> bool:
    """Whether a path is exactly the template's, a `{name}` standing for one segment."""
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        bool(have) if want.startswith("{") else want == have
        for want, have in zip(wanted, given, strict=True)
    )
