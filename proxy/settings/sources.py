"""Where values come from: flag over environment over file over default.

Every value keeps its origin, so that `check --show` and every problem can name it.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.settings.effective import Problem
from proxy.settings.files import open_file
from proxy.settings.model import PREFIX, keys, variable

# Names that integrators already have (facts, section 5).
PLAIN_VARIABLES = {"base_url": "NOMBA_BASE_URL", "environment": "NOMBA_ENVIRONMENT"}
_OTHERS = frozenset(
    {
        "NOMBA_PROXY_CONFIG",
        "NOMBA_PROXY_ADMIN_TOKEN",
        "NOMBA_PROXY_CALLERS_SIGNING_KEY",
        "NOMBA_PROXY_STORE_PASSWORD",
    }
)
# A Kubernetes Service named nomba-proxy injects these.
_INJECTED = re.compile(r"NOMBA_PROXY_(?:PORT|SERVICE_.*|PORT_.*)")


@dataclass(slots=True)
class Report:
    """What is found out about the settings on the way.

    Attributes:
        problems: what makes them unusable.
        warnings: what is unwise but works.
        origins: where each key's value came from; what is missing is a default.
        again: whether it is for a proxy that runs, which waits for no file.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    again: bool = False

    def problem(self, key: str, text: str, *, hint: str = "", origin: str | None = None) -> None:
        """Add a problem; its origin is the key's unless another is given."""
        if origin is None:
            section = key.partition(".")[0] if key.startswith("caller.") else key
            origin = self.origins.get(key) or self.origins.get(section, "default")
        self.problems.append(Problem(key, origin, text, hint))


def read_sources(
    *,
    environ: Mapping[str, str],
    config: str | None,
    flags: Mapping[str, str | list[str]],
    report: Report,
) -> dict[str, Any]:
    """The values of all sources, merged and not yet validated.

    Args:
        environ: the environment.
        config: path of the TOML file, or None.
        flags: dotted keys from the command line.
        report: takes origins, problems and warnings.
    """
    values = _file(config, report=report) if config else {}
    known = {variable(key): key for key in keys()}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in _OTHERS or _INJECTED.fullmatch(name):
            continue
        if name in known:
            _put(values, known[name], value, origin=f"environment {name}", report=report)
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            report.warnings.append(f"{name} in the environment is no setting{hint}")
    for key, name in PLAIN_VARIABLES.items():
        if environ.get(name):
            origin = f"environment {name}"
            _put(values, f"upstream.0.{key}", environ[name], origin=origin, report=report)
    for key, given in flags.items():
        if key in keys():
            _put(values, key, given, origin="flag", report=report)
        else:
            near = difflib.get_close_matches(key, keys(), n=1)
            shown = near[0].replace(".0.", ".") if near else ""
            hint = f"Did you mean {shown}?" if near else "nomba-proxy check --show lists them."
            report.problem(key.replace(".0.", "."), "is no setting", hint=hint, origin="flag")
    return values


def _file(path: str, *, report: Report) -> dict[str, Any]:
    origin = f"file {path}"
    try:
        with open_file(path, waits=not report.again) as file:
            values = tomllib.load(file)
    except OSError as error:
        report.problem("config", f"cannot be read: {error.strerror}", origin=path)
        return {}
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or absurd
        report.problem("config", f"is no valid TOML: {error}", origin=path)
        return {}
    for key, value in values.items():
        report.origins[key] = origin
        if isinstance(value, dict):
            report.origins |= dict.fromkeys((f"{key}.{one}" for one in value), origin)
        elif key in {"upstream", "caller"} and isinstance(value, list):
            for at, entry in enumerate(value):
                names = entry if isinstance(entry, dict) else ()
                report.origins |= dict.fromkeys((f"{key}.{at}.{one}" for one in names), origin)
    return values


def _put(values: dict[str, Any], key: str, value: object, *, origin: str, report: Report) -> None:
    report.origins[key] = origin
    path = key.split(".")
    if path[0] == "upstream":
        entries = values.setdefault("upstream", [])
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            return  # validation names it
        if len(entries) > 1:
            report.problem(
                key.replace(".0.", "."),
                f"there are {len(entries)} upstreams, so one value for all is ambiguous",
                hint="Put it into the [[upstream]] entries of the settings file.",
                origin=origin,
            )
            return
        if not entries:
            entries.append({})
        entries[0][path[2]] = value
    elif len(path) == 1:
        values[path[0]] = value
    else:
        section = values.setdefault(path[0], {})
        if isinstance(section, dict):
            section[path[1]] = value
