"""The works: what is asked for, and who is asked."""

from dataclasses import dataclass

from origin import KIB
from ours import OURS, ours
from peers import PEERS, Peer

CONNECTIONS = (1, 8, 32, 128, 512)  # of the sweep
USUAL = 32  # connections, of the table


@dataclass(frozen=True, kw_only=True)
class Work:
    """One of them.

    Attributes:
        name: for options and JSON.
        title: for people.
        path: of the origin.
        method: of the request.
        up: bytes of its body.
        down: bytes of the reply's body.
        connections: at a time.
        tls: whether the origin is reached by TLS.
        alike: whether all requests are the same, to the byte.
        headers: lines that the request has beside those that let it through.
        peers: who takes part.
    """

    name: str
    title: str
    path: str = "/v1/accounts/balance"
    method: str = "GET"
    up: int = 0
    down: int = KIB
    connections: int = USUAL
    tls: bool = False
    alike: bool = True
    headers: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = (ours(), *PEERS)


RENEWING = ours(f"{OURS}, renewals", short=True)
# Ours, run otherwise.
VARIANTS = (
    ours(f"{OURS}, anonymous caller", caller="nobody"),
    ours(f"{OURS}, phantom token", caller="token"),
    ours(f"{OURS}, inspector on", inspect=True),
    ours(f"{OURS}, 2 workers", workers=2),
    RENEWING,
)
GET = Work(name="get", title="small GET, 1 KiB reply")
WORKS = (
    GET,
    Work(name="unlike", title="small GET, each with a query and an id of its own", alike=False),
    Work(
        name="post",
        title="POST of 1 KiB, 1 KiB reply",
        path="/v1/transfers/bank/lookup",
        method="POST",
        up=KIB,
    ),
    Work(name="100k", title="GET, 100 KiB reply", path="/v1/transfers/banks", down=100 * KIB),
    Work(
        name="10m",
        title="GET, 10 MiB reply",
        path="/v1/transactions/accounts",
        down=10 * KIB * KIB,
        connections=4,  # requests that the end of a round cuts are not counted: few, of many bytes
    ),
    Work(name="tls", title="small GET, TLS to the upstream", tls=True),
    Work(name="variants", title="small GET, ours in other ways", peers=(ours(), *VARIANTS)),
)
