"""Ten minutes of constant load on a proxy to which everything happens: who is lost, what grows?

    make soak                        # writes docs/soak.md and docs/performance/soak.json
    make soak ARGS="--minutes 1"     # to see that it works; writes neither

A proxy of two workers, TCP and TLS, whose session lies on a Valkey server, stands before the
simulator, whose tokens live for seconds. Settings are reloaded, workers are killed, the store comes
back empty, certificates and the client secret change, a rival ends the session. The exit code is 1 if
something does not hold. `--seed` chooses another course.
"""

import argparse
import asyncio
import json
import ssl
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conditions import conditions
from harness import spawned
from lab import interruptible
from processes import Workers
from soak_events import QUIET, WORKERS, Certificate, Fate, Log, SettingsFile, Stage
from soak_load import Callers, Door, Excuses
from soak_nomba import ISSUE, REFRESH, ClientSecret, Nomba
from soak_report import held, money, requests, tables, verdict
from soak_watch import Watch
from valkeys import ValkeyServer, free_port

LIFETIME = 8.0  # seconds; a token is renewed after three quarters of them
WHOLE = 10.0  # minutes of a run that docs/ tell of
RESULTS = Path(__file__).parent / "results" / "soak.json"
DOCS = Path(__file__).parents[1] / "docs" / "performance" / "soak.json"
SETTINGS = """
listen = ["127.0.0.1:{plain}", "https://127.0.0.1:{tls}"]
store = "{store}"
workers = {workers}

[tls]
cert_file = "{certificate}"
key_file = "{certificate}"

[log]
format = "json"

"""


def main() -> int:
    """The exit code."""
    options = parse()
    print(f"{options.minutes:g} minutes", file=sys.stderr)
    with interruptible():
        found = {"conditions": conditions([]), **asyncio.run(soak(options))}
    found["verdict"] = verdict(found)
    print(tables(found))
    for one in found["losses"][:20]:
        print(f"{one['kind']} over {one['door']}, {one['why']}")
    targets = [options.json, DOCS] if options.minutes >= WHOLE else [options.json]
    for path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, ensure_ascii=False) + "\n")
    if DOCS in targets:
        import page

        page.write()
    return 0 if all(one["holds"] for one in found["verdict"]) else 1


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=WHOLE)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--pause", type=float, nargs=2, default=(0.5, 3.5), help="seconds between two events"
    )
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    return parser.parse_args()


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Run it; all that was found."""
    with tempfile.TemporaryDirectory(prefix="nomba-proxy-soak-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            nomba = Nomba(LIFETIME)
            await stack.enter_async_context(nomba.simulator)
            server = ValkeyServer(folder)
            await server.start()
            stack.push_async_callback(server.kill)
            return await _soak(options, nomba=nomba, server=server, folder=folder)


async def _soak(
    options: argparse.Namespace, *, nomba: Nomba, server: ValkeyServer, folder: Path
) -> dict[str, Any]:
    certificate, excuses = Certificate(folder), Excuses()
    secret = ClientSecret(folder / "secret", nomba.switches)
    plain, tls = free_port(), free_port()
    fixed = SETTINGS.format(
        plain=plain, tls=tls, store=server.url, workers=WORKERS, certificate=certificate.path
    )
    settings = SettingsFile(folder / "proxy.toml", fixed)
    trust = ssl.create_default_context(cadata=certificate.authority.pem.decode())
    doors = (Door("TCP", plain), Door("TLS", tls, trust))
    callers = Callers(doors, rate=options.rate, seed=options.seed, excuses=excuses)
    env = {
        "NOMBA_CLIENT_ID": nomba.switches.client_id,
        "NOMBA_CLIENT_SECRET_FILE": str(secret.path),
        "NOMBA_ACCOUNT_ID": nomba.switches.account_id,
        "NOMBA_BASE_URL": nomba.simulator.origin,
        "NOMBA_PROXY_CALLERS_SIGNING_KEY": "a signing key that all replicas have",
        "NOMBA_PROXY_STATE_DIR": str(folder / "state"),
    }
    flags = (f"--config={settings.path}", "--admin-listen=127.0.0.1:0")
    with (folder / "log").open("ab") as output:
        async with spawned("serve", *flags, stdout=output, **env) as (process, banner):
            log = Log(folder / "log")
            stage = Stage(
                proxy=Workers(process, banner),
                server=server,
                nomba=nomba,
                settings=settings,
                certificate=certificate,
                secret=secret,
                log=log,
                excuses=excuses,
                ports=(plain, tls),
            )
            await stage.proxy.serving()
            seconds = options.minutes * 60
            fate = Fate(stage, seed=options.seed, seconds=seconds, pause=options.pause)
            watch = Watch(
                process.pid,
                calm=lambda: fate.idle,
                connections=lambda: callers.open,
                began=fate.began,
            )
            await _run(fate, callers, watch)
            callers.settle()
            took = time.monotonic() - fate.began
            log.count("")
    log.count("")
    return {
        "seconds": round(took, 1),
        "rate": options.rate,
        "workers": WORKERS,
        "lifetime": LIFETIME,
        "seed": options.seed,
        "requests": requests(callers.counts, fresh=callers.fresh, taken=callers.taken),
        "sent_late_seconds": round(callers.latest, 3),
        "losses": [asdict(one) for one in callers.losses],
        "events": {name: fate.happened[name] for name in sorted(fate.happened)},
        "store_in_token_calls": fate.in_token_calls,
        "renewals": _renewals(nomba, fate.happened, seconds=took),
        "money": money(callers.references, sent=nomba.sent, moved=nomba.moved),
        "held": held(watch.samples, seconds=took, quiet=QUIET),
        "log": {one: log.counts[one] for one in sorted(log.counts)},
        "exit_code": process.returncode,
        "samples": [asdict(one) for one in watch.samples],
    }


async def _run(fate: Fate, callers: Callers, watch: Watch) -> None:
    """Until fate has had enough; the load begins before it and ends after it."""
    done = asyncio.Event()
    asking = asyncio.create_task(callers.run(done))
    watching = asyncio.create_task(watch.run(workers=WORKERS))
    try:
        await fate.run()
        await asyncio.sleep(1)
    finally:
        done.set()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asking


def _renewals(nomba: Nomba, events: dict[str, int], *, seconds: float) -> dict[str, int]:
    """Tokens, and how many there may be: one a lifetime, and one for what ends a session early.

    Renewed at three quarters of its life, and by those who learn of it from the store a tenth of the
    rest sooner.
    """
    ends = ("kill -9", "restart of the store", "another client secret", "login of a rival")
    early = sum(n for name, n in events.items() if name.startswith(ends))
    rivals = sum(n for name, n in events.items() if name.startswith("login of a rival"))
    return {
        "by refresh": nomba.granted[REFRESH],
        "by issue": nomba.granted[ISSUE] - rivals,
        "at most": int(seconds / (LIFETIME * 0.725)) + 2 + early,
    }


if __name__ == "__main__":
    sys.exit(main())
