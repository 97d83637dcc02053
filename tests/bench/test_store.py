"""What replicas cost the server they share can still be measured."""

import asyncio
import sys
from pathlib import Path

STORE = Path(__file__).parents[2] / "bench" / "store.py"


async def test_a_renewal_reaches_all_replicas_and_is_counted(valkey):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(STORE), "--port", str(valkey.port)),
        *("--replicas", "2", "--renewals", "2", "--rest", "1"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    at_rest, renewal, arrival = out.decode().splitlines()
    assert at_rest.startswith("at rest, a second and replica: CPU ")
    assert " publish " in renewal
    assert "until another replica has the new token: p50 " in arrival
