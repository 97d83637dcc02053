"""The proxies that are compared: how each is configured and started.

All do the same work: HTTP/1.1, connections to the origin kept, two headers set, an access log in
a file, one thread. What cannot be configured alike is said where it stands.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab import Missing, environment
from origin import ACCOUNT, CONFIGS, STATIC_TOKEN, Origin, fill, find, nginx_user

HERE = Path(__file__).parent
ROOT = HERE.parent
PEERS_VENV = Path(os.environ.get("PEERS_VENV", ROOT / ".venv-peers"))
FASTIFY = HERE / "fastify"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a proxy is given.

    Attributes:
        folder: for its files, empty.
        port: that it has to listen on.
        origin: where to forward.
        tls: whether over TLS, with the certificate checked.
        short: whether to the port whose tokens live for seconds.
    """

    folder: Path
    port: int
    origin: Origin
    tls: bool = False
    short: bool = False

    @property
    def url(self) -> str:
        """The origin's, as a base."""
        if self.tls:
            return f"https://localhost:{self.origin.tls_port}"
        return f"http://127.0.0.1:{self.origin.short_port if self.short else self.origin.port}"

    def fill(self, name: str, **more: object) -> Path:
        """A configuration from its template."""
        scheme, _, authority = self.url.partition("://")
        return fill(
            CONFIGS / name,
            target=self.folder / name,
            **more,  # first: they may hold names too
            user=nginx_user(),
            folder=self.folder,
            port=self.port,
            scheme=scheme,
            host=authority.partition(":")[0],
            origin_port=authority.partition(":")[2],
            ca=self.origin.ca,
            token=STATIC_TOKEN,
            account=ACCOUNT,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to run a proxy.

    Attributes:
        command: what is run.
        env: what its environment has beside ours.
        headers: lines that a request needs to be let through.
        log: the file in its folder that its access log is in; none if it writes none.
        log_in: once it is up, a key to log in with: the token of the reply is such a line too.
    """

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    log: str = "access.log"
    log_in: str = ""


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        name: in tables.
        plan: sets it up.
        version: says which one it is.
        cores: how many it may use.
    """

    name: str
    plan: Callable[[Site], Plan]
    version: Callable[[], str]
    cores: int = 1


def _installed(program: str) -> str:
    """A server of Debian's, or Missing."""
    path = find(program)
    if path is None:
        raise Missing(f"not installed: apt-get install {program}")
    return path


def _in_peers(program: str) -> str:
    """A program of the peers' environment, or Missing."""
    path = PEERS_VENV / "bin" / program
    if not path.exists():
        raise Missing(f"not installed: there is no {program} in {PEERS_VENV.name} (make bench)")
    return str(path)


def _says(*command: str) -> str:
    """The version in the output of a program."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    found = re.search(r"\d+\.\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
    return found.group() if found else "of unknown version"


def _envoy(site: Site) -> Plan:
    tls = site.fill("envoy-tls.yaml").read_text() if site.tls else ""
    config = site.fill("envoy.yaml", tls=tls)
    # One worker; the main thread beside it only keeps time.
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return Plan(command=[_in_peers("envoy"), "-c", str(config), *options])


def _caddy(site: Site) -> Plan:
    tls = f"tls_trust_pool file {site.origin.ca}" if site.tls else ""
    config = site.fill("Caddyfile", tls=tls)
    return Plan(
        command=[_in_peers("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)],
        env={"GOMAXPROCS": "1", "HOME": str(site.folder)},
    )


def _nginx(site: Site) -> Plan:
    command = [_installed("nginx"), "-p", str(site.folder), "-e", "stderr", "-c"]
    return Plan(command=[*command, str(site.fill("nginx.conf"))])


def _haproxy(site: Site) -> Plan:
    ca = site.origin.ca
    tls = f"ssl verify required ca-file {ca} sni str(localhost) verifyhost localhost"
    config = site.fill("haproxy.cfg", tls=tls if site.tls else "")
    return Plan(command=[_installed("haproxy"), "-db", "-f", str(config)], log="output")


def _mitmproxy(site: Site) -> Plan:
    options = {
        "listen_host": "127.0.0.1",
        "listen_port": site.port,
        "confdir": site.folder,
        "ssl_verify_upstream_trusted_ca": site.origin.ca,
        "stream_large_bodies": "64k",  # else it would hold a reply whole
    }
    command = [_in_peers("mitmdump"), "--mode", f"reverse:{site.url}"]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    for name, value in (("Authorization", f"Bearer {STATIC_TOKEN}"), ("accountId", ACCOUNT)):
        command += ["--modify-headers", f"/~q/{name}/{value}"]
    return Plan(command=command, log="output")


def _fastify(site: Site) -> Plan:
    node = _installed("node")
    if not (FASTIFY / "node_modules").exists():
        raise Missing("not installed: there is no bench/fastify/node_modules (make bench)")
    command = [node, str(FASTIFY / "proxy.mjs"), str(site.port), site.url]
    command += [str(site.folder / "access.log"), STATIC_TOKEN, ACCOUNT]
    return Plan(command=command, env={"NODE_EXTRA_CA_CERTS": str(site.origin.ca)})


def _baseline(site: Site, *, log: bool) -> Plan:
    command = [sys.executable, str(HERE / "baseline.py"), site.url, str(site.port)]
    if log:
        command.append(str(site.folder / "access.log"))
    env = {"BENCH_TOKEN": STATIC_TOKEN, "BENCH_ACCOUNT": ACCOUNT}
    return Plan(
        command=command,
        env={**env, "BENCH_CA": str(site.origin.ca), "PYTHONPATH": str(ROOT)},
        log="access.log" if log else "",
    )


def _fastify_version() -> str:
    manifest = FASTIFY / "node_modules/@fastify/http-proxy/package.json"
    try:
        version = json.loads(manifest.read_text())["version"]
    except OSError:
        version = "?"
    return f"{version}, node {_says(_installed('node'), '--version')}"


def _aiohttp_version() -> str:
    import aiohttp

    return f"aiohttp {aiohttp.__version__}"


PEERS = (
    Peer("nginx", _nginx, lambda: _says(_installed("nginx"), "-v")),
    Peer("haproxy", _haproxy, lambda: _says(_installed("haproxy"), "-v")),
    Peer("envoy", _envoy, lambda: _says(_in_peers("envoy"), "--version")),
    Peer("caddy", _caddy, lambda: _says(_in_peers("caddy"), "version")),
    Peer("fastify", _fastify, _fastify_version),
    Peer("mitmproxy", _mitmproxy, lambda: _says(_in_peers("mitmdump"), "--version")),
    Peer("clientsession", lambda site: _baseline(site, log=True), _aiohttp_version),
    Peer("clientsession-no-log", lambda site: _baseline(site, log=False), _aiohttp_version),
)
