"""Who was told that the server cannot be reached is told when it can."""

import asyncio
import random
import time
from dataclasses import replace

import pytest
from processes import until

from proxy.core.secret import Secret
from proxy.tokens.keyring import Keyring
from proxy.tokens.seal import Identity, Seal
from proxy.tokens.store import StoreFailed
from proxy.tokens.valkey_store import ValkeyStore
from proxy.valkey import Valkey

ORIGIN = "https://issuer.test"


@pytest.fixture
async def store(valkey):
    link = Valkey(
        "127.0.0.1",
        port=valkey.port,
        shown=valkey.url,
        alive=time.monotonic,
        random=random.random,
        emit=lambda _: None,
    )
    identity = Identity(ORIGIN, "client")
    made = ValkeyStore(
        link,
        identity=identity,
        seal=Seal(identity, keyring=Keyring(Secret("secret", origin=ORIGIN))),
        lease=3.0,
        alive=time.monotonic,
        wall=time.time,
        random=random.random,
        warn=pytest.fail,
    )
    link.start()
    yield made
    await link.close()


async def test_also_if_it_was_there_again_before_anybody_was_told(store, valkey):
    told = []
    store.listen(lambda: told.append(1))

    async def lose():
        async with store.lease() as held:
            await valkey.kill()
            try:
                await store.save(replace(held, generation=1))
            finally:
                await valkey.start()
                await until(lambda: told)
                await asyncio.sleep(0.5)

    with pytest.raises(StoreFailed):
        await lose()
    told.clear()
    await until(lambda: told, seconds=5)
