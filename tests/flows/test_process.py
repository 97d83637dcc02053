"""What a process says of itself and of the machine before it forwards anything."""

import asyncio
import json
import re
import resource
import signal
import sys
from pathlib import Path

import pytest
from harness import environ, served

from proxy.app.process import TESTED, see_to_loop


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


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_sighup_while_it_starts_does_not_end_it(workers):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--simulate", f"--workers={workers}"),
        *("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"),
        env=environ(NOMBA_PROXY_INSPECT="false"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    status = Path(f"/proc/{process.pid}/status")

    def heeds():
        masks = re.findall(r"(?m)^Sig(?:Ign|Cgt):\t(\w+)", status.read_text())
        return any(int(one, 16) & 1 << signal.SIGHUP - 1 for one in masks)

    while not heeds():
        await asyncio.sleep(0.001)
    banner = asyncio.create_task(process.stderr.readline())
    while not banner.done():
        process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.01)
    assert banner.result().startswith(b"nomba-proxy")
    while b"curl" not in await asyncio.wait_for(process.stderr.readline(), 20):
        pass
    process.terminate()
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0


async def test_a_fault_of_the_loop_is_told_without_what_it_was_called_with():
    told = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    see_to_loop(emit=told.append)
    try:
        loop.call_soon(int, "marked-secret")
        await asyncio.sleep(0.01)
    finally:
        loop.set_exception_handler(before)
    [event] = told
    assert (event.name, event.fields["type"]) == ("loop_fault", "ValueError")
    assert "marked-secret" not in str(event)
