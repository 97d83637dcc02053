"""`nomba-proxy simulate` as a stranger runs it, and its manual line by line."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import environ, run, spawned

from proxy.simulator import KINDS
from proxy.simulator.client import Control

MANUAL = Path(__file__).parents[2] / "docs" / "simulator.md"


class Simulated:
    """A simulator in a process of its own, and what its banner said."""

    def __init__(self, process, banner):
        self.process = process
        self.banner = banner
        self.origin = re.search(r"listening +(\S+)", banner)[1]
        self.control = re.search(r"control +(\S+)", banner)[1]

    async def end(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(self.process.communicate(), 30)
        return out.decode(), err.decode()


@asynccontextmanager
async def simulated(*arguments, **env):
    ports = ("--listen=127.0.0.1:0", "--control-listen=127.0.0.1:0")
    async with spawned("simulate", *ports, *arguments, **env) as (process, banner):
        yield Simulated(process, banner)


async def shell(script):
    if shutil.which("curl") is None:
        assert "CI" not in os.environ, ".ci/run should have installed curl"
        pytest.skip("curl is not installed here")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        env=environ(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_printed_curl_logs_in_and_every_request_is_a_line():
    async with simulated() as nomba:
        curl = nomba.banner.partition("try it:\n")[2].strip()
        reply = json.loads(await shell(curl))
        assert (reply["code"], reply["data"]["businessId"][-4:]) == ("00", "0001")
        out, err = await nomba.end()
    assert (nomba.process.returncode, err.strip()) == (0, "")
    assert out == "    1 POST /v1/auth/token/issue -> 200 code 00\n"


async def test_it_can_be_told_to_misbehave_before_it_starts_and_while_it_runs():
    arguments = ("--fault=reply status=503 path=/a", "--fault", "stall times=always path=/b")
    async with simulated(*arguments, "--set=simulator.lifetime=60") as nomba:
        control = Control(nomba.control)
        faults = await asyncio.to_thread(control.faults)
        assert [(one["fault"], one["path"], one["left"]) for one in faults] == [
            ("reply", "/a", 1),
            ("stall", "/b", "always"),
        ]
        assert (await asyncio.to_thread(control.switches))["lifetime"] == 60
        assert '"code":"503"' in await shell(f"curl -s {nomba.origin}/a")
        await asyncio.to_thread(control.fault, "drop-after")
        assert "56" in await shell(f"curl -s {nomba.origin}/c || echo $?")
        out, _ = await nomba.end()
    assert out.splitlines() == ["    1 GET /a -> 503 code 503", "    2 GET /c -> no reply"]


async def test_an_app_finds_its_own_account_and_secrets_are_not_repeated():
    env = {"NOMBA_ACCOUNT_ID": "my-account", "NOMBA_PROXY_SIMULATOR_CLIENT_SECRET": "marked-own"}
    async with simulated("--set", "simulator.client_id=me", **env) as nomba:
        assert "my-account" in nomba.banner
        assert "marked-own" not in nomba.banner
        form = json.dumps(
            {"grant_type": "client_credentials", "client_id": "me", "client_secret": "marked-own"}
        )
        login = f"curl -s {nomba.origin}/v1/auth/token -H accountid:my-account -d '{form}'"
        assert '"code":"00"' in await shell(login)


async def test_a_state_file_outlives_the_process(tmp_path):
    file = tmp_path / "nomba.json"
    async with simulated("--state", str(file), "--seed=7") as nomba:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        control = Control(nomba.control)
        await asyncio.to_thread(control.fault, "expire")
        before = await asyncio.to_thread(control.ledger)
        await nomba.end()
    async with simulated("--state", str(file)) as nomba:
        control = Control(nomba.control)
        assert await asyncio.to_thread(control.ledger) == before
        assert await asyncio.to_thread(control.faults) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--fault=lose"], 2, "simulator.faults (flag): 'lose' is no fault; there are: expire"),
        (["--fault=delay seconds=x"], 2, "seconds must be a number"),
        (["--set=simulator.expired_as=7"], 2, "simulator.expired_as (flag): input should be"),
        (["--set=simulator.rate_limit=-1"], 2, "rate_limit must be a whole number, not negative"),
        (["--set=simulator.lifetime=1e300"], 2, "simulator.lifetime (flag): lifetime must be"),
        (["--set=simulator.other_clients=a"], 2, "must each be client_id:client_secret"),
        (["--set=simulator.lifetimes=7"], 2, "Did you mean simulator.lifetime?"),
        (["--seed=x"], 2, "simulator.seed (flag)"),
        (["--listen=nowhere"], 2, "simulator.listen (flag)"),
        (
            ["--state=/nowhere/at/all.json"],
            1,
            "simulator.state_file: /nowhere/at/all.json cannot be locked: No such",
        ),
        (["--state=/"], 1, "simulator.state_file: / cannot be read: Is a directory"),
    ],
)
async def test_what_cannot_be_is_said(arguments, code, says):
    got, out, err = await run("simulate", "--listen=127.0.0.1:0", *arguments)
    assert (got, out) == (code, "")
    assert says in err


async def test_an_address_that_is_taken_is_said():
    async with simulated() as nomba:
        taken = nomba.origin.removeprefix("http://")
        for flag, key in (("--listen", "listen"), ("--control-listen", "control_listen")):
            others = {"--listen": "127.0.0.1:0", "--control-listen": "127.0.0.1:0", flag: taken}
            code, _, err = await run("simulate", *(f"{k}={v}" for k, v in others.items()))
            assert code == 1
            assert f"simulator.{key} = {taken}: " in err


async def test_listeners_that_it_does_not_open_are_none_of_its_business():
    everywhere = {
        "NOMBA_PROXY_LISTEN": "0.0.0.0:8080",
        "NOMBA_PROXY_ADMIN_LISTEN": "0.0.0.0:9091",
        "NOMBA_PROXY_SIMULATOR_LIFETIM": "5",
    }
    async with simulated(**everywhere) as nomba:
        assert "did you mean NOMBA_PROXY_SIMULATOR_LIFETIME?" in nomba.banner


async def test_whoever_is_told_nothing_of_the_simulator_does_not_read_it():
    env = {"NOMBA_CLIENT_ID": "a", "NOMBA_CLIENT_SECRET": "b", "NOMBA_ACCOUNT_ID": "c"}
    env |= {"NOMBA_PROXY_SIMULATOR_FAULTS": "bogus", "NOMBA_PROXY_SIMULATOR_LISTEN": "bogus"}
    assert (await run("check", **env))[0] == 0
    code, _, err = await run("check", "--simulate", **env)
    assert code == 2
    assert "simulator.faults" in err
    assert "simulator.listen" in err


async def test_a_control_api_that_others_can_reach_is_warned_of():
    async with simulated("--control-listen=0.0.0.0:0") as nomba:
        assert "warning: simulator.control_listen: 0.0.0.0:0 can be reached" in nomba.banner


async def test_help_knows_every_fault():
    code, out, _ = await run("simulate", "--help")
    assert code == 0
    for name in KINDS:
        assert f"  {name} " in out


async def test_a_reader_that_leaves_stops_nothing():
    async with simulated() as nomba:
        nomba.process.stdout._transport.close()  # as `| head -1` does
        for _ in range(3):
            await shell(f"curl -s {nomba.origin}/x")
        assert nomba.process.returncode is None


def manual():
    """What the manual tells a reader to type, once the simulator runs."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", MANUAL.read_text())
    return [block for block in blocks if not block.startswith("nomba-proxy")]


async def test_the_manual_works_as_it_is_written():
    async with simulated() as nomba:
        script = "\n".join(manual())
        for port, origin in (("8090", nomba.origin), ("8091", nomba.control)):
            assert script.count(f"http://127.0.0.1:{port}") == 1
            script = script.replace(f"http://127.0.0.1:{port}", origin)
        out = await shell(script)
    assert '"amount":"1000000.00"' in out
    assert '"merchantTxRef":"first"' in out
    assert '"fault":"lose-reply"' in out
    assert '"orderReference":"order-1"' in out
    assert '"success":true' in out
    for bad in (
        '"code":"401"',
        '"code":"404"',
        '"code":"405"',
        '"code":"403"',
        '"description":"The',
    ):
        assert bad not in out, out


async def test_the_python_of_the_manual_works():
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```", MANUAL.read_text())
    async with simulated() as nomba:
        code = block.replace("http://127.0.0.1:8091", nomba.control)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), env=environ(), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        assert b"'parent': '1000000.00'" in out
        assert (await asyncio.to_thread(Control(nomba.control).switches))["lifetime"] == 60
