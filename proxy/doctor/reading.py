"""Read the settings as `serve` would, and what can be had of them where it would not start."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from proxy.doctor.of_settings import SecretSeen
from proxy.settings import Problem, ReadyUpstream, Settings, SettingsError, load

_CREDENTIALS = ("NOMBA_CLIENT_", "NOMBA_PRIVATE_KEY", "NOMBA_ACCOUNT_ID", "NOMBA_PARENT_ACCOUNT")
Flags = Mapping[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading the settings.

    Attributes:
        settings: as far as they can be used; None if they cannot at all.
        problems: for which `serve` would not start.
        sub_account: what the environment names as a sub-account, or "".
    """

    settings: Settings | None
    problems: tuple[Problem, ...]
    sub_account: str = ""


def read(*, environ: Mapping[str, str], config: str | None, flags: Flags) -> Reading:
    """The settings, with every problem; then without what has problems, as far as that helps.

    Args:
        environ: the environment.
        config: path of the settings file, or None.
        flags: dotted keys with their values from the command line.
    """
    sub_account = environ.get("NOMBA_SUB_ACCOUNT_ID", "")
    try:
        settings = load(environ=environ, config=config, flags=flags)
    except SettingsError as error:
        problems = tuple(error.problems)
    else:
        return Reading(settings, (), sub_account)
    bare = {key: value for key, value in environ.items() if not _is_credential(key)}
    for given, told in ((environ, flags), (bare, {"simulate": "false", **flags})):
        try:  # the way to the upstream can be tried without credentials and callers
            settings = load(
                environ=given,
                config=config,
                flags=told,
                credentials=False,
                listeners=False,
                callers=False,
            )
        except SettingsError:
            continue
        return Reading(settings, problems, sub_account)
    return Reading(None, problems, sub_account)


def _is_credential(name: str) -> bool:
    return name.startswith(_CREDENTIALS) or name == "CREDENTIALS_DIRECTORY"


def only(settings: Settings, name: str) -> Settings | None:
    """The settings with one upstream; None if there is none of that name."""
    found = tuple(one for one in settings.upstreams if one.name == name)
    return replace(settings, upstreams=found) if found else None


def look_at_secret(
    one: ReadyUpstream, *, settings: Settings, environ: Mapping[str, str]
) -> SecretSeen:
    """How an upstream's client secret lies there.

    Args:
        one: the upstream.
        settings: it is of; they know where each value came from.
        environ: the environment.
    """
    names = [entry.name for entry in settings.model.upstream]
    at = names.index(one.name) if one.name in names else 0
    origin = settings.origins.get(f"upstream.{at}.client_secret", "")
    kind, _, name = origin.partition(" ")
    path = name if kind == "file" else ""
    if kind == "credential":
        path = str(Path(environ.get("CREDENTIALS_DIRECTORY", "")) / name)
    value = one.client_secret.reveal(to=one.origin.text)
    bare = value.strip()
    return SecretSeen(
        origin,
        path,
        _mode(path) if path else None,
        edges=value != bare,
        lines=len(bare.splitlines()) > 1,
        quoted=len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'",
    )


def _mode(path: str) -> int | None:
    try:
        return stat.S_IMODE(Path(path).stat().st_mode)
    except OSError:  # it was read a moment ago
        return None
