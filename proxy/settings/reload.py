"""What of new settings a running proxy takes over, and what needs a restart."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pydantic import BaseModel

from proxy.settings.effective import ReadyUpstream, Settings
from proxy.settings.model import SettingsModel

# Sections, and keys of sections, that are taken over; everything else is as it was at the start.
SECTIONS = ("body", "timeouts", "pool", "headers", "drain")
KEYS = {
    "admin": ("token_file",),
    "log": ("level", "sample"),
    "tls": ("cert_file", "key_file", "client_ca_file", "client_required"),
    "callers": (
        *("head_timeout", "idle_timeout", "write_stall", "head_limit", "head_fields"),
        *("connections", "hosts", "origins", "file"),
    ),
}
UPSTREAM_KEYS = ("account_policy", "account_allow", "account_override_money")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of reading the settings again.

    Attributes:
        settings: to be in force from now on.
        changed: keys that are taken over with another value.
        restart: keys that have changed and need a restart.
    """

    settings: Settings
    changed: tuple[str, ...]
    restart: tuple[str, ...]

    @property
    def told(self) -> dict[str, object]:
        """For logs, and whoever asked."""
        return {"changed": list(self.changed), "restart": list(self.restart)}


def take_over(old: Settings, new: Settings) -> Reloaded:
    """The settings in force after a reload."""
    if new.signing_key is None:  # several workers were given one that none of the settings names
        new = replace(new, signing_key=old.signing_key)
    update: dict[str, object] = {name: getattr(new.model, name) for name in SECTIONS}
    for section, names in KEYS.items():
        before, after = getattr(old.model, section), getattr(new.model, section)
        update[section] = before.model_copy(update={one: getattr(after, one) for one in names})
    if (old.tls is None) is not (new.tls is None):  # listeners do not begin to speak TLS
        del update["tls"]
    found = {one.name: one for one in new.upstreams}
    merged = replace(
        old,
        model=old.model.model_copy(update=update | {"caller": new.model.caller}),
        upstreams=tuple(_upstream(one, found.get(one.name)) for one in old.upstreams),
        tls=new.tls if "tls" in update else old.tls,
        callers=new.callers.after(old.callers),
        callers_file=new.callers_file,
        read_callers=new.read_callers,
        admin_token=new.admin_token,
        warnings=new.warnings,
        origins=new.origins,
        again=new.again,
    )
    before, now, wanted = _flat(old), _flat(merged), _flat(new)
    every = sorted({*before, *now, *wanted})
    return Reloaded(
        merged,
        tuple(key for key in every if now.get(key) != before.get(key)),
        tuple(key for key in every if wanted.get(key) != now.get(key)),
    )


def _upstream(old: ReadyUpstream, new: ReadyUpstream | None) -> ReadyUpstream:
    if new is None:
        return old
    taken = {name: getattr(new.options, name) for name in UPSTREAM_KEYS}
    return replace(old, options=old.options.model_copy(update=taken))


def _flat(settings: Settings) -> Mapping[str, object]:
    """Every key with its value, and what hangs on them."""
    flat: dict[str, object] = {}
    for name in SettingsModel.model_fields:
        value = getattr(settings.model, name)
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{key}": one for key, one in value}
        elif name not in {"upstream", "caller"}:
            flat[name] = value
    for caller in settings.callers.callers:
        flat[f"caller {caller.name}"] = caller
    for upstream in settings.upstreams:
        where = f"upstream {upstream.name}"
        flat |= {f"{where}: {key}": one for key, one in upstream.options}
        flat |= {
            f"{where}: {one.name}": getattr(upstream, one.name)
            for one in fields(upstream)
            # Secrets are looked at by themselves.
            if one.name not in {"options", "client_secret", "next_secret", "read_secrets"}
        }
    flat["callers.signing_key"] = settings.signing_key
    flat["admin.token"] = settings.admin_token
    return flat
