"""Measure what replicas cost the server they share: on a real one, over loopback.

    python bench/store.py --port 6379 --replicas 8          # an empty Valkey server that listens there

The replicas are real sessions, in one process, so what a new token takes to reach the last of them is
an upper bound: here one core does the work of all.
"""

import argparse
import asyncio
import random
import time

from fleet import at

from proxy.core.secret import Secret
from proxy.core.session import Limits
from proxy.tokens.asking import Clocks
from proxy.tokens.keyring import Keyring
from proxy.tokens.manager import Session
from proxy.tokens.nomba import Credentials, Grant
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.valkey_store import ValkeyStore
from proxy.valkey import Valkey

ORIGIN = "https://issuer.test"
QUIET = 20.0  # seconds of rest that are measured
CLOCKS = Clocks(alive=time.monotonic, wall=time.time, random=random.random)


class Auth:
    """Issues after as long as a token call may take."""

    credentials = Credentials(ORIGIN, "client", "account")

    async def issue(self, _secret: Secret) -> Grant:
        return await self._grant()

    async def refresh(self, **_tokens: Secret) -> Grant:
        return await self._grant()

    async def _grant(self) -> Grant:
        await asyncio.sleep(0.2)
        token, refresh = (Secret(random.randbytes(350).hex(), origin=ORIGIN) for _ in range(2))
        return Grant(access_token=token, refresh_token=refresh, life=1800.0, account_id="account")


class Replica(Session):
    """A session that notes when it would lend a token."""

    had: dict[int, float]

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_held" and value.token is not None:
            self.__dict__.setdefault("had", {}).setdefault(value.generation, time.perf_counter())


def replica(port: int) -> tuple[Valkey, Replica]:
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
    options = {"limits": Limits(), "clocks": CLOCKS, "emit": bool}
    return valkey, Replica("nomba", auth=Auth(), keyring=keyring, store=store, **options)


async def counted(valkey: Valkey) -> dict[str, float]:
    """What the server has done so far."""
    client = valkey._client
    stats, commands = await client.info("stats"), await client.info("commandstats")
    found = {name.partition("_")[2]: one["calls"] for name, one in commands.items()}
    found["in"], found["out"] = stats["total_net_input_bytes"], stats["total_net_output_bytes"]
    cpu = await client.info("cpu")
    found["cpu"] = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
    return found


async def measure(port: int, *, replicas: int, renewals: int) -> None:
    every = [replica(port) for _ in range(replicas)]
    asked, _ = replica(port)  # what is asked for figures is no replica
    for valkey, session in every:
        valkey.start()
        session.start()
    await asyncio.sleep(5)
    before = await counted(asked)
    await asyncio.sleep(QUIET)
    after = await counted(asked)
    tell("at rest, a second and replica", before, after, QUIET * replicas)
    before, late = after, []
    begun = time.perf_counter()
    for number in range(renewals):
        token = await every[number % replicas][1].renew_now()
        await asyncio.sleep(0.3)
        had = sorted(one.had[token.generation] for _, one in every)
        late += [(one - had[0]) * 1000 for one in had[1:]]
        by = ("caller", "/v1/accounts/balance")  # the first that is served lets the others know
        every[number % replicas][1].accepted(token.generation, by=by)
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
    for valkey, session in every:
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
    options = vars(parser.parse_args())
    asyncio.run(measure(options.pop("port"), **options))
