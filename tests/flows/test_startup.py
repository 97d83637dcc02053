"""What a start loads: nothing of what is off, or it would be paid for in time and memory."""

import asyncio
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from harness import run, served, spawned
from processes import children

# The interpreter names each module on stderr as it loads it.
TOLD = {"PYTHONPROFILEIMPORTTIME": "1"}
UNWATCHED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
PARTS = {
    "inspector": "proxy.inspector",
    "simulator": "proxy.simulator.simulator",
    "kept session": "cryptography",
    "shared session": "redis",
    "processes": "proxy.supervisor",
    "TOML that is written": "tomlkit",
    "DNS beside the system": "pycares",
    "tracing": "opentelemetry.exporter",  # redis asks for the rest of it too
    "forwarding": "aiohttp",
    "settings": "pydantic",
}
ALWAYS = {"forwarding", "settings"}
MIB = 1024  # kB


def modules(text):
    return re.findall(r"(?m)^import time: +\d+ \| +\d+ \| +(\S+)$", text)


def parts(text):
    """The parts of a proxy that what it printed says are loaded."""
    names = modules(text)
    assert "proxy" in names
    return {
        part
        for part, top in PARTS.items()
        if any(name == top or name.startswith(f"{top}.") for name in names)
    }


def credentials(simulator):
    switches = simulator.switches
    return {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": "k" * 48,
    }


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        ((), set()),
        (("--inspect=true",), {"inspector"}),
        (("--set=store=file:{folder}",), {"kept session"}),
        (("--set=store=valkey://127.0.0.1:1",), {"kept session", "shared session"}),
        (("--workers=2",), {"processes", "kept session"}),
        (("--workers=2", "--inspect=true"), {"processes", "kept session", "inspector"}),
        (("--simulate", "--inspect=false"), {"simulator"}),
        (("--simulate",), {"simulator", "inspector"}),
        (("--set=tracing.otlp_endpoint=http://127.0.0.1:1",), {"tracing"}),
    ],
)
async def test_a_start_loads_what_is_on(simulator, tmp_path, flags, more):
    flags = [flag.format(folder=tmp_path) for flag in flags]
    env = TOLD | credentials(simulator) | {"NOMBA_PROXY_INSPECT_LISTEN": "127.0.0.1:0"}
    async with served(*flags, **env) as proxy:
        assert parts(proxy.banner) == ALWAYS | more


async def test_a_request_loads_nothing(simulator):
    async with served(**TOLD, **credentials(simulator)) as proxy:
        url = f"http://{proxy.address}/v1/accounts/balance"
        async with aiohttp.ClientSession() as http:
            for sent in ({}, {"json": {"amount": 1}}):
                async with http.request("POST" if sent else "GET", url, **sent) as reply:
                    assert reply.headers["Nomba-Proxy-Outcome"] == "answered"
        proxy.process.terminate()
        _, after = await asyncio.wait_for(proxy.process.communicate(), 30)
    assert [name for name in modules(after.decode()) if name.startswith("proxy.")] == []


@pytest.mark.parametrize(
    ("line", "loaded"),
    [
        (("--version",), set()),
        (("version",), set()),
        (("--help",), set()),
        (("simulate", "--help"), set()),
        (("check", "--set=listen=x"), {"settings"}),
        (("check", "--simulate=true"), {"settings"}),
        (("token", "show", "--admin-listen=127.0.0.1:1"), {"settings"}),
        (("tail", "--no-follow", "--url=http://127.0.0.1:1/?token=x"), {"settings"}),
        (("caller", "list"), {"settings", "TOML that is written"}),
    ],
    ids=" ".join,
)
async def test_a_verb_loads_no_proxy(line, loaded):
    _, _, err = await run(*line, **TOLD)
    assert parts(err) == loaded


async def test_the_simulator_alone_loads_no_proxy():
    ports = ("--listen=127.0.0.1:0", "--control-listen=127.0.0.1:0")
    async with spawned("simulate", *ports, **TOLD) as (_, banner):
        assert parts(banner) == {"settings", "simulator"}


async def test_an_idle_process_holds_less_than_60_mib(simulator):
    """Measured, in MiB of PSS: 45 of the one process, 22 of a worker."""
    held = {}
    for flags in ((), ("--workers=2",)):
        async with served(*flags, **UNWATCHED, **credentials(simulator)) as proxy:
            async with aiohttp.request("GET", proxy.curl.split()[-1]) as reply:
                assert reply.status == 200
            pids = children(proxy.process.pid) if flags else [proxy.process.pid]
            for pid in pids:
                held[pid] = mib(pid)
    assert len(held) == 3
    assert max(held.values()) < 60


def mib(pid):
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        pytest.skip("this system does not say what a process holds")
    return int(re.search(r"(?m)^Pss: +(\d+) kB", rollup.read_text())[1]) / MIB


FAULTS = """
import resource
{first}
def replies():
    return [b"x" * 100_000 + b"%d" % number for number in range(10)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(300):
    replies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_memory_of_a_large_reply_is_not_had_from_the_kernel_page_by_page_for_every_one():
    def faults(first):
        command = (sys.executable, "-c", FAULTS.format(first=first))
        done = subprocess.run(command, capture_output=True, check=True, env=os.environ | UNWATCHED)
        return int(done.stdout)

    kept = "from proxy.cli.serve import keep_freed_memory\nkeep_freed_memory()"
    assert faults(kept) < 1000
    assert faults("") > 10_000  # else the function is for nothing
