"""A store over a server that is played: what a real one does, in an order that a test chooses."""

import asyncio
from dataclasses import replace
from random import Random

import pytest
from fleet_store import Server

from proxy.core.secret import Secret
from proxy.core.session import Held
from proxy.tokens import valkey_store as real
from proxy.tokens.keyring import Keyring
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.valkey_store import ValkeyStore
from proxy.valkey import StoreClock

KEYS = ("{x}:session", "{x}:lease", "{x}:fence", "{x}:news")
WHO = (b"one", b"two")


def a_call(random):
    """A script with arguments that are as often right as wrong."""
    who = random.choice(WHO)
    fence, count, generation, issued = (random.randrange(6) for _ in range(4))
    calls = [
        (real._READ, (count, generation)),
        (real._ACQUIRE, (who, 60_000, fence)),
        (real._EXTEND, (who, 60_000)),
        (real._RELEASE, (who,)),
        (real._SAVE, (who, fence, count, generation, issued, b"sealed")),
        (real._REFILL, (generation, issued, count, b"refilled")),
        (real._ASK, ()),
    ]
    return random.choice(calls)


@pytest.mark.parametrize("seed", range(20))
def test_the_server_of_the_simulation_answers_as_a_real_one_does(valkey, seed):
    random, played, client = Random(seed), Server(lambda: 1000.0), valkey.client()
    for _ in range(60):
        script, args = a_call(random)
        _, *answer = client.eval(script, len(KEYS), *KEYS, *args)
        _, expected = played.run(script, args)
        if len(answer) == 1 and script == real._ACQUIRE:  # how long the lease still lasts
            answer[0] = min(max(answer[0], 50_000), 60_000) and expected[0]
        assert answer == expected
        if random.random() < 0.1:  # a lease ends
            client.delete(KEYS[1])
            played.lapse()
    client.close()


class LateLink:
    """The played server, whose answer to a save can be held back."""

    def __init__(self, server):
        self.clock, self.problem, self.answers = StoreClock(), "", asyncio.Event()
        self._server = server
        self.answers.set()

    async def run(self, script, *, keys, args=()):
        told, rest = self._server.run(script, args)
        if script == real._SAVE:
            await self.answers.wait()
        self.clock.heard(told, asked=told, now=told)
        return rest

    def follow(self, channel, look):
        self.look = look


def a_store(server):
    identity = Identity("https://issuer.test", "client")
    keyring = Keyring(Secret("the-client-secret", origin=identity.origin))
    link, seal = LateLink(server), Seal(identity, keyring=keyring)
    clocks = {"alive": lambda: 1000.0, "wall": lambda: 1000.0, "random": lambda: 0.5}
    store = ValkeyStore(link, identity=identity, seal=seal, lease=60, warn=bool, **clocks)
    return store, link, seal


async def test_a_holder_that_lost_its_lease_does_not_write_back_what_was_refused():
    server = Server(lambda: 1000.0)
    (late, link, seal), (other, _, _) = a_store(server), a_store(server)
    server.run(real._REFILL, (1, 0, 0, seal.close(Held(generation=1), {}, now=0.0)))
    async with late.lease() as held:
        server.lapse()
        async with other.lease() as theirs:
            await other.save(replace(theirs, calling=True))
            link.answers.clear()
            saving = asyncio.create_task(late.save(replace(held, generation=2)))
            await asyncio.sleep(0)
            await link.look(b"w")
            link.answers.set()
            assert (await saving).generation == server.generation == 1
