"""Every command in the docs is run, or stands in a list with the reason why not."""

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from documented import PAGES, ROOT, Place, blocks, commands, why_not
from harness import environ
from valkeys import free_port

WITH_COMMANDS = [one for one in PAGES if commands(one.read_text())]
NEEDED = ("bash", "curl", "make", "openssl")
LANGUAGES = {"", "sh", "toml", "json", "yaml", "python", "ini", "nginx", "promql", "text"}


@pytest.fixture
def place():
    # Not pytest's own: the path of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        folder = Path(name)
        for path in ("etc/nomba-proxy", "run/secrets", "tmp", "bin"):
            (folder / path).mkdir(parents=True)
        program = folder / "bin/nomba-proxy"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m proxy "$@"\n')
        program.chmod(0o755)
        shutil.copytree(ROOT / "config", folder / "config")
        yield Place(folder, [free_port() for _ in range(6)], {})


async def run_page(path, place, **env):
    folder, ports = place.folder, place.ports
    own = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "ROOT": str(ROOT),
        "VENV": str(Path(sys.executable).parents[1]),
        "NOMBA_PROXY_SIMULATE": "auto",
        "NOMBA_PROXY_LISTEN": f"127.0.0.1:{ports[0]}",
        "NOMBA_PROXY_ADMIN_LISTEN": f"127.0.0.1:{ports[1]}",
        "NOMBA_PROXY_INSPECT_LISTEN": f"127.0.0.1:{ports[2]}",
        "NOMBA_PROXY_STATE_DIR": f"{folder}/var/lib/nomba-proxy",
    }
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        place.script(commands(path.read_text())),
        cwd=folder,
        env=environ(**own | env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 50)
    except TimeoutError:
        process.terminate()  # it stops what it has left running
        raise
    assert process.returncode == 0, out.decode()
    return out.decode()


async def with_everything(path, place, simulator, valkey):
    """What a page takes for granted."""
    switches = simulator.switches
    secrets = place.folder / "run/secrets"
    for name, text in (("nomba", switches.client_secret), ("signing-key", "k" * 40)):
        (secrets / name).write_text(text)
        (secrets / name).chmod(0o600)
    place.replaced.update(
        {
            "NOMBA_CLIENT_ID=…": f"NOMBA_CLIENT_ID={switches.client_id}",
            "NOMBA_ACCOUNT_ID=…": f"NOMBA_ACCOUNT_ID={switches.account_id}",
            "NOMBA_ENVIRONMENT=sandbox": f"NOMBA_BASE_URL={simulator.origin}",
            "valkey://sessions.internal:6379": valkey.url,
            "--uid cron": "--uid daemon",  # a user that every machine has
        }
    )
    if path.name == "simulator.md":
        ports = place.ports
        return {
            "NOMBA_PROXY_SIMULATOR_LISTEN": f"127.0.0.1:{ports[3]}",
            "NOMBA_PROXY_SIMULATOR_CONTROL_LISTEN": f"127.0.0.1:{ports[4]}",
        }
    given = {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
    }
    if path.name == "migration.md":  # an app that is to be moved
        (place.folder / ".env").write_text("NOMBA_BASE_URL=https://api.nomba.com\n")
        return given
    if path.name != "scaling.md":
        return {}
    (secrets / "valkey-password").write_text("pass-word")
    (secrets / "valkey-password").chmod(0o600)
    valkey.client().config_set("requirepass", "pass-word")
    return given


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
async def test_the_commands_of_a_page_work_in_their_order(path, place, simulator, valkey):
    missing = [one for one in NEEDED if shutil.which(one) is None]
    if missing:
        told = pytest.fail if os.environ.get("CI") else pytest.skip
        told(f"not installed: {', '.join(missing)}")
    env = await with_everything(path, place, simulator, valkey)
    await run_page(path, place, **env)


def test_most_of_them_are_run():
    pages = [path.read_text() for path in WITH_COMMANDS]
    every = [command for page in pages for block in commands(page) for command in block]
    assert len([one for one in every if not why_not(one)]) > len(every) / 2


@pytest.mark.parametrize("command", ["rm -r /etc/hosts", "cat x > /usr/local/bin/y"])
def test_a_command_that_touches_the_machine_is_not_run(place, command):
    with pytest.raises(AssertionError, match="NOT_RUN"):
        place.script([[command]])


def test_no_command_hides_in_a_block_of_another_kind():
    for path in PAGES:
        for language, text in blocks(path.read_text()):
            assert language in LANGUAGES, (path.name, language)
            if language != "sh":
                assert not text.startswith(
                    ("nomba-proxy ", "make ", "curl ", "pip ", "export ", "$ ")
                )


async def test_a_command_that_fails_is_told(place, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nnomba-proxy check\nnomba-proxy token show   # of no proxy\n```\n")
    with pytest.raises(AssertionError, match="failed with 1: nomba-proxy token show"):
        await run_page(page, place)
