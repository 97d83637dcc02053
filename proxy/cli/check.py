"""`nomba-proxy check`: the settings are valid already when this runs."""

import json
import sys

from proxy.settings import ReadyUpstream, Settings, describe


def check(settings: Settings, *, show: bool, as_json: bool) -> int:
    """Report on valid settings; the exit code."""
    rows = describe(settings)
    if as_json:
        listed = {key: {"value": value, "origin": origin} for key, value, origin in rows}
        print(json.dumps({"settings": listed, "warnings": settings.warnings}, indent=2))
        return 0
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if show:
        wide = max(len(key) for key, _, _ in rows)
        value_wide = min(40, max(len(value) for _, value, _ in rows))
        for key, value, origin in rows:
            print(f"{key:<{wide}}  {value:<{value_wide}}  {origin}")
    else:
        names = ", ".join(_named(one) for one in settings.upstreams) or "the simulator"
        callers = ", ".join(one.name for one in settings.callers.callers) or "none configured"
        print(f"the settings are valid; upstream: {names}; callers: {callers}")
    return 0


def _named(one: ReadyUpstream) -> str:
    by = "".join(f" for {host}" for host in sorted(one.hosts))
    return f"{one.name} ({one.origin.text} at {one.mount or '/'}{by})"
