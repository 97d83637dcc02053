"""Apps written for Nomba itself (`tests/apps`), each in its own way, run as they are."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from harness import environ

_APPS = Path(__file__).parent / "apps"
RUN = {
    "urllib_threads.py": sys.executable,
    "requests_session.py": sys.executable,
    "httpx_refresh.py": sys.executable,
    "aiohttp_tasks.py": sys.executable,
    "fetch.mjs": "node",
    "curl.sh": "sh",
}
_NEEDS = {"fetch.mjs": "node", "curl.sh": "curl"}


def missing(app: str) -> str:
    """What an app needs and this machine has not, or ""; in CI that is a failure."""
    needed = _NEEDS.get(app)
    if needed is None or shutil.which(needed) is not None:
        return ""
    if os.environ.get("CI"):
        pytest.fail(f"{needed} is not installed")
    return f"{needed} is not installed"


async def started(url: str, app: str, *, calls: int, pause: float = 0.0, **env: str):
    """Run an app to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        RUN[app],
        str(_APPS / app),
        env=environ(NOMBA_BASE_URL=url, CALLS=str(calls), PAUSE=str(pause), **env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    return process.returncode, out.decode(), err.decode()


async def play(url: str, app: str, *, calls: int, pause: float = 0.0, **env: str) -> list[int]:
    """Run an app to its end; every status it saw."""
    code, out, err = await started(url, app, calls=calls, pause=pause, **env)
    assert code == 0, err
    return json.loads(out)
