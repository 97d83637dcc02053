"""nomba-proxy itself, as it is measured: access log, metrics and caller check on."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from lab import Missing, environment, free_port
from origin import ACCOUNT
from peers import Peer, Plan, Site

from proxy import __version__
from proxy.cli.serve import event_loop
from proxy.core.caller import Digest

OURS = "nomba-proxy"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How it is run.

    Attributes:
        caller: says who it is by a `key`, a phantom `token` or not at all (`nobody`).
        inspect: whether the inspector is on.
        workers: how many.
        short: whether tokens live for seconds only.
        callers: callers that are in the file beside the one who calls.
        rules: lines of rules that the one who calls has; the last lets everything through.
    """

    caller: str = "key"
    inspect: bool = False
    workers: int = 1
    short: bool = False
    callers: int = 0
    rules: int = 0


def _caller_file(variant: Variant, env: dict[str, str]) -> str:
    """Write the callers; the key of the one who calls."""
    rules = [f"allow GET /v1/terminals/{at}/**" for at in range(variant.rules - 1)]
    command = [sys.executable, "-m", "proxy", "caller", "add", "bench", "--json"]
    command.append("--keep-anonymous" if variant.caller == "nobody" else "--close-anonymous")
    for rule in [*rules, "allow any"] if variant.rules else ():
        command += ["--rule", rule]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise Missing(f"nomba-proxy caller add: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    with Path(said["file"]).open("a") as file:
        for at in range(variant.callers):
            digest = Digest.of(f"secret-{at}", salt=f"{at:016x}")
            file.write(f'\n[[caller]]\nname = "other-{at}"\nsecrets = ["{digest}"]\n')
    return said["key"]


def _plan(site: Site, variant: Variant) -> Plan:
    """Set one up."""
    site = replace(site, short=variant.short)
    env = {
        "NOMBA_CLIENT_ID": "bench-client",
        "NOMBA_CLIENT_SECRET": "bench-client-secret",
        "NOMBA_ACCOUNT_ID": ACCOUNT,
        "NOMBA_BASE_URL": site.url,
        "NOMBA_PROXY_UPSTREAM_CA_FILE": str(site.origin.ca) if site.tls else "",
        "NOMBA_PROXY_STATE_DIR": str(site.folder / "state"),
        "NOMBA_PROXY_LISTEN": f"127.0.0.1:{site.port}",
        "NOMBA_PROXY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        "NOMBA_PROXY_LOG_FORMAT": "json",
        "NOMBA_PROXY_WORKERS": str(variant.workers),
        "NOMBA_PROXY_INSPECT": str(variant.inspect).lower(),
        "NOMBA_PROXY_INSPECT_LISTEN": f"127.0.0.1:{free_port()}",
        "NOMBA_PROXY_CALLERS_IDLE_TIMEOUT": "3600",  # as the peers', or longer than a run
        "NOMBA_PROXY_POOL_SIZE": "1024",  # as the peers' pools, for 512 callers at a time
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    env = {name: value for name, value in env.items() if value}
    key = _caller_file(variant, environment(**env))
    return Plan(
        command=[sys.executable, "-m", "proxy", "serve"],
        env=env,
        headers=(f"X-Nomba-Proxy-Key: {key}",) if variant.caller == "key" else (),
        log="output",
        log_in=key if variant.caller == "token" else "",
    )


def log_in(port: int, key: str) -> str:
    """A phantom token, as an app gets it.

    Raises:
        Missing: it was refused.
    """
    body = {"grant_type": "client_credentials", "client_id": "bench", "client_secret": key}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/auth/token/issue",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "accountId": ACCOUNT},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)["data"]["access_token"]
    except (OSError, urllib.error.HTTPError) as error:
        raise Missing(f"no phantom token: {error}") from None


def ours(name: str = OURS, **options: object) -> Peer:
    """A variant, to stand beside the peers."""
    variant = Variant(**options)
    return Peer(name, lambda site: _plan(site, variant), _version, variant.workers)


def _version() -> str:
    return f"{__version__} on {'uvloop' if event_loop() else 'asyncio'}"
