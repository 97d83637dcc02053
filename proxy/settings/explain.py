"""A validation error in words for people."""

import difflib
import re

from proxy.settings.model import ALLOWED, CallerEntry, SettingsModel, keys


def explain(loc: tuple[int | str, ...], *, kind: str, message: str) -> tuple[str, str, str]:
    """Key, text and hint of a problem that validation found.

    Args:
        loc: where, as pydantic says it.
        kind: its name of the error.
        message: its words.
    """
    # The branches of a union are no part of the key.
    parts = [str(one) for one in loc if not str(one).startswith(("literal", "bool"))]
    key = ".".join(parts)
    generic = re.sub(r"^(upstream|caller)\.\d+\.", r"\1.0.", key)
    if kind == "extra_forbidden" and parts[-1] == "client_secret":
        hint = "Put it into a file of its own and name that as client_secret_file."
        return key, "secrets do not belong into the settings file", hint
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(generic, _siblings(generic), n=1)
        hint = f"Did you mean {near[0].replace('.0.', '.')}?" if near else ""
        return key, "is no setting", hint
    if kind == "missing":
        return key, "is not set", ""
    allowed = ALLOWED.get(generic)
    return key, f"must be {allowed}" if allowed else message[:1].lower() + message[1:], ""


def _siblings(generic: str) -> list[str]:
    every = [*keys(), *(f"caller.0.{one}" for one in CallerEntry.model_fields)]
    siblings = [one for one in every if one.count(".") == generic.count(".")]
    return siblings + ([] if "." in generic else list(SettingsModel.model_fields))
