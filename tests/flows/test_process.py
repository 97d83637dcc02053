"""What a process says of itself and of the machine before it forwards anything."""

import asyncio
import json
import resource
import sys

import pytest
from harness import environ, served

from proxy.app.process import TESTED


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_aiohttp_that_nobody_has_tried_is_told_of(tmp_path, workers):
    (tmp_path / "sitecustomize.py").write_text("import aiohttp\naiohttp.__version__ = '3.99.1'\n")
    flags = ("--simulate", f"--workers={workers}")
    async with served(*flags, PYTHONPATH=str(tmp_path)) as proxy:
        proxy.process.terminate()
        out, _ = await asyncio.wait_for(proxy.process.communicate(), 20)
    told = [json.loads(line) for line in out.splitlines() if b"aiohttp_untested" in line]
    assert [(one["version"], one["tested"]) for one in told] == [("3.99.1", TESTED)]


async def test_descriptors_are_taken_up_to_what_may_be_had_and_too_few_are_told_of():
    code = (
        "import resource as r, os, sys; r.setrlimit(r.RLIMIT_NOFILE, (64, int(sys.argv[1]))); "
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', *sys.argv[2:]])"
    )
    flags = ("serve", "--simulate", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
    for hard, few in ((2048, True), (4096, False), (15_000, False)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, str(hard), *flags),
            env=environ(NOMBA_PROXY_INSPECT="false", NOMBA_PROXY_CALLERS_CONNECTIONS="3000"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        while b"curl" not in await asyncio.wait_for(process.stderr.readline(), 20):
            pass
        soft, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        process.terminate()
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        told = [json.loads(line) for line in out.splitlines() if b"few_descriptors" in line]
        assert [one["limit"] for one in told] == ([hard] if few else [])
        # Twice the connections: those that are refused have one for a moment too.
        assert soft == hard if hard <= 4096 else 6000 < soft < hard
