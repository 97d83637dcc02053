"""What a human needs at start."""

import shlex

from proxy import __version__
from proxy.app.running import Running
from proxy.app.sessions import share
from proxy.core.secret import mask
from proxy.settings import (
    ReadyUpstream,
    Settings,
)

_WITH_KEY = "-H 'X-Nomba-Proxy-Key: …' "


def banner(running: Running, *, settings: Settings) -> str:
    """What a human needs at start: where it listens, what it forwards to, how to call it."""
    lines = [f"nomba-proxy {__version__}"]
    lenders = {name: first for first, names in share(running.upstreams).items() for name in names}
    for one in running.upstreams:
        what = "SIMULATOR (built in, no real money)" if running.faults else one.origin.environment
        at = one.mount or "/"
        kept = "" if one.options.strip_mount or not one.mount else " (kept)"
        names = f", for Host {', '.join(sorted(one.hosts))}" if one.hosts else ""
        lender = lenders[one.name]
        shared = "" if lender == one.name else f", session shared with {lender}"
        lines += [
            f"  upstream   {one.name}: {what}, {one.origin.text}, mounted at {at}{kept}{names}",
            f"  account    {mask(one.account_id)}{shared}",
        ]
    lines += _who_may_call(running, settings=settings)
    if running.faults:
        lines.append(f"  faults     {running.faults}  (docs/simulator.md)")
    lines += [f"  warning    {one}" for one in settings.warnings]
    if settings.model.workers > 1:
        lines.append(f"  workers    {settings.model.workers}")
    if settings.store_dir is not None:
        lines.append(f"  session    kept in {settings.store_dir}")
    if settings.shared_store is not None:
        lines.append(f"  session    shared with all that use {settings.shared_store}")
    first = running.upstreams[0]
    way, *others = [one.url for one in running.listeners]
    url = way
    if way.startswith("unix:"):
        way, url = f"--unix-socket {way.removeprefix('unix://')} ", "http://localhost"
    elif way.startswith("https:"):  # its own chain is enough for curl to trust it
        tls = settings.model.tls
        way = f"-S --cacert {shlex.quote(str(tls.cert_file))} "
        way += "--cert … --key … " if tls.client_ca_file and tls.client_required else ""
    else:
        way = ""
    called = "".join(f"-H 'Host: {_bracketed(name)}' " for name in sorted(first.hosts)[:1])
    key = "" if _is_open(first, settings) else _WITH_KEY
    lines += [
        f"  listening  {running.listeners[0].url}  (admin {running.admin_listener.url})",
        *(f"             {one}" for one in others),
        *([f"  inspector  {running.inspector}"] if running.inspector else []),
        "",
        "  try it:",
        f"    curl -s {way}{called}{key}{url}{first.mount}/v1/accounts/balance",
        "",
    ]
    return "\n".join(lines)


def summary(running: Running) -> str:
    """The same in one line, for a service manager."""
    ways = ", ".join(one.url for one in running.listeners)
    upstreams = ", ".join(
        "simulator" if running.faults else one.origin.text for one in running.upstreams
    )
    return f"{ways} to {upstreams} (admin {running.admin_listener.url})"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_open(one: ReadyUpstream, settings: Settings) -> bool:
    """Whether callers nobody knows may use an upstream, as the proxy starts."""
    explicit = settings.model.callers.anonymous is True
    return one.anonymous and (explicit or settings.callers.keeps_anonymous)


def _who_may_call(running: Running, *, settings: Settings) -> list[str]:
    names = [one.name for one in settings.callers.callers]
    said = []
    opened = [one.name for one in running.upstreams if _is_open(one, settings)]
    if opened:
        where = "" if len(opened) == len(running.upstreams) else f", for {', '.join(opened)} only"
        said.append(f"anybody on this machine{where} (callers.anonymous)")
    if names:
        said.append(", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else ""))
    if settings.model.callers.accept_upstream_credentials and settings.local:
        said.append("apps that log in with the upstream's own client id and secret")
    if not names and not opened:
        said.append("add one with a key of its own: nomba-proxy caller add NAME")
    return [f"  {'' if at else 'callers':<9}  {one}" for at, one in enumerate(said)]
