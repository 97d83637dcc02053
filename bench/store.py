"""Measure what replicas cost the server they share: on a real one, over loopback.

    python bench/store.py --port 6379 --replicas 8          # an empty Valkey server that listens there

The replicas are real sessions, in one process, so what a new token takes to reach the last of them is
an upper bound: here one core does the work of all.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Callable

from fleet import at

from proxy.core.secret import Secret
from proxy.core.session import Limits
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.known import Known
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, Grant
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.valkey_store import ValkeyStore
from proxy.valkey import Valkey

ORIGIN = "https://issuer.test"
CLOCKS = Clocks(alive=time.monotonic, wall=time.time, random=random.random)


class Auth:
    """Issues after as long as a token call may take."""

    credentials = Credentials(ORIGIN, "client", "account")

    async def issue(self, _secret: Secret, *, sending: Callable[[], object]) -> Grant:
        return await self._grant(sending)

    async def refresh(self, *, sending: Callable[[], object], **_tokens: Secret) -> Grant:
        return await self._grant(sending)

    async def _grant(self, sending: Callable[[], object]) -> Grant:
        sending()
        await asyncio.sleep(0.2)
        token, refresh = (Secret(random.randbytes(350).hex(), origin=ORIGIN) for _ in range(2))
        return Grant(access_token=token, refresh_token=refresh, life=1800.0, account_id="account")


class Noting(Known):
    """What is known of a session, and since when a token would be lent."""

    def __init__(self, *args, **options) -> None:
        self.had: dict[int, float] = {}  # by generation
        super().__init__(*args, **options)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "held" and value.token is not None:
            self.had.setdefault(value.generation, time.perf_counter())


def replica(port: int) -> tuple[Valkey, Noting, Session]:
    valkey = Valkey(
        "127.0.0.1",
        port=port,
        shown="the server",
        alive=CLOCKS.alive,
        random=CLOCKS.random,
        emit=bool,
    )
    identity = Identity(ORIGIN, "client")
    keyring = Keyring(Secret("the-client-secret", origin=ORIGIN))
    store = ValkeyStore(
        valkey,
        identity=identity,
        seal=Seal(identity, keyring=keyring),
        lease=3.0,
        alive=CLOCKS.alive,
        wall=CLOCKS.wall,
        random=CLOCKS.random,
        warn=print,
    )
    known = Noting("nomba", keyring=keyring, store=store, clocks=CLOCKS, emit=bool)
    return valkey, known, Session(known, auth=Auth(), limits=Limits())


async def counted(valkey: Valkey) -> dict[str, float]:
    """What the server has done so far."""
    client = valkey._client
    stats, commands = await client.info("stats"), await client.info("commandstats")
    found = {name.partition("_")[2]: one["calls"] for name, one in commands.items()}
    found["in"], found["out"] = stats["total_net_input_bytes"], stats["total_net_output_bytes"]
    cpu = await client.info("cpu")
    found["cpu"] = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
    return found


async def measure(port: int, *, replicas: int, renewals: int, rest: float) -> None:
    every = [replica(port) for _ in range(replicas)]
    asked, *_ = replica(port)  # what is asked for figures is no replica
    for valkey, _, session in every:
        valkey.start()
        session.start()
    await asyncio.sleep(rest / 4)
    before = await counted(asked)
    await asyncio.sleep(rest)
    after = await counted(asked)
    tell("at rest, a second and replica", before, after, rest * replicas)
    before, late = after, []
    begun = time.perf_counter()
    for number in range(renewals):
        *_, session = every[number % replicas]
        token = await session.renew_now()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(30):
            while any(token.generation not in one.had for _, one, _ in every):
                await asyncio.sleep(0.05)
        had = sorted(one.had[token.generation] for _, one, _ in every)
        late += [(one - had[0]) * 1000 for one in had[1:]]
        by = ("caller", "/v1/accounts/balance")  # the first that is served lets the others know
        session.accepted(token.generation, by=by)
        await asyncio.sleep(0.2)
    after = await counted(asked)
    spent = time.perf_counter() - begun
    tell(
        f"a renewal and replica, with {spent / renewals:.1f} s of rest",
        before,
        after,
        renewals * replicas,
    )
    shown = ", ".join(
        f"p{share:.0%}".rstrip("%") + f" {at(late, share):.1f} ms" for share in (0.5, 0.99)
    )
    print(f"until another replica has the new token: {shown}, max {max(late):.1f} ms")
    for valkey, _, session in every:
        await session.close(revoke=False)
        await valkey.close()
    await asked.close()


def tell(what: str, before: dict[str, float], after: dict[str, float], count: float) -> None:
    told = {name: (after[name] - before.get(name, 0)) / count for name in sorted(after)}
    cpu = told.pop("cpu") * 1e6
    told = {name: value for name, value in told.items() if value and "info" not in name}
    print(
        f"{what}: CPU {cpu:.0f} us;",
        ", ".join(f"{name} {value:.2f}" for name, value in told.items()),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--renewals", type=int, default=50)
    parser.add_argument("--rest", type=float, default=20.0, help="seconds (default: 20)")
    options = vars(parser.parse_args())
    asyncio.run(measure(options.pop("port"), **options))
